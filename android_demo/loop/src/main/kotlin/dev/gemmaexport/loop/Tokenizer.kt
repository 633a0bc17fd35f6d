package dev.gemmaexport.loop

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction
import java.util.PriorityQueue

/**
 * A bundle's tokenizer.json: byte-pair encoding as Gemma has it (spaces become ▁, unknown characters
 * become bytes) or as GPT-2 has it (everything is bytes).
 *
 * What it does not know in the file is refused by name, so that it never tokenizes otherwise than the
 * library that wrote the file. Ids of text are proved against that library by golden traces.
 */
class Tokenizer(json: String) {
    private val root = parse(json)
    private val model = root.member("model") as? Map<*, *> ?: refuse("model", root["model"])
    private val byteLevel = (root["pre_tokenizer"] as? Map<*, *>)?.get("type") == "ByteLevel"
    private val ids = HashMap<String, Int>()
    private val texts: Array<String?>
    private val merges: Map<Long, Merge>
    private val added: Map<Char, List<String>> // by first character, the longest first
    private val special = HashSet<Int>()
    private val byteIds: IntArray? // of <0x00> … <0xFF>, where unknown characters become bytes

    init {
        checkKinds()
        val vocabulary = model.member("vocab") as Map<*, *>
        for ((text, id) in vocabulary) ids[text as String] = tokenId(id)
        merges = (model.member("merges") as List<*>).withIndex().associate { (rank, pair) ->
            val (left, right) = if (pair is String) pair.split(' ') else pair as List<*>
            Pair(pairOf(id(left), id(right)), Merge(rank, id("$left$right")))
        }
        val tokens = (root["added_tokens"] as? List<*> ?: emptyList<Any>()).map { it as Map<*, *> }
        for (token in tokens) {
            val text = token.member("content") as String
            ids[text] = tokenId(token.member("id"))
            if (token["special"] == true) special.add(ids.getValue(text))
            for (flag in listOf("single_word", "lstrip", "rstrip")) {
                if (token[flag] == true) refuse("added token $text: $flag", true)
            }
        }
        added = tokens.map { it["content"] as String }.filter { it != "" }.groupBy { it[0] }
            .mapValues { (_, words) -> words.sortedByDescending { it.length } }
        texts = arrayOfNulls(ids.values.fold(0) { most, id -> maxOf(most, id + 1) })
        for ((text, id) in ids) texts[id] = text
        val bytes = (0..255).map { ids[String.format("<0x%02X>", it)] }
        byteIds = if (bytes.all { it != null }) IntArray(256) { bytes[it]!! } else null
    }

    /** The ids of a text; control tokens written in it are taken for what they are. */
    fun encode(text: String): List<Int> {
        val found = ArrayList<Int>()
        var begun = 0
        var at = 0
        while (at < text.length) {
            val word = added[text[at]]?.firstOrNull { text.startsWith(it, at) }
            if (word == null) {
                at++
                continue
            }
            encodePlain(text.substring(begun, at), found)
            found.add(ids.getValue(word))
            at += word.length
            begun = at
        }
        encodePlain(text.substring(begun), found)
        return found
    }

    /** Text, without the control tokens; bytes that are no whole character become \uFFFD. */
    fun decode(tokenIds: List<Int>): String {
        val built = StringBuilder()
        val bytes = java.io.ByteArrayOutputStream()
        for (id in tokenIds) {
            if (!isShown(id)) continue
            val text = text(id)
            when {
                byteLevel -> bytes.write(bytesOfSigns(text))
                isByte(id) -> bytes.write(text.substring(3, 5).toInt(16))
                else -> {
                    flush(bytes, built)
                    built.append(text.replace('▁', ' '))
                }
            }
        }
        flush(bytes, built)
        return built.toString()
    }

    /** Whether `decode` makes text of it: a token, and no control token. */
    fun isShown(id: Int): Boolean = texts.getOrNull(id) != null && id !in special

    /** Whether it stands for one byte, as <0xE2> does: what is no whole character by itself. */
    fun isByte(id: Int): Boolean = BYTE_TOKEN.matches(text(id))

    /** How a token is written; "" if there is none. */
    fun text(tokenId: Int): String = texts.getOrNull(tokenId).orEmpty()

    /** The tokens between which the model thinks, by the names of its special tokens. */
    fun thought(specialTokens: Map<String, String>): Thought? {
        val begin = ids[specialTokens["soc_token"]] ?: return null
        val end = ids[specialTokens["eoc_token"]] ?: return null
        return Thought(begin, end)
    }

    private fun flush(bytes: java.io.ByteArrayOutputStream, built: StringBuilder) {
        if (bytes.size() == 0) return
        // Where tokens stand for bytes, the library makes one sign of each if any of them is wrong.
        val onError = if (byteLevel) CodingErrorAction.REPLACE else CodingErrorAction.REPORT
        val decoder = Charsets.UTF_8.newDecoder().onMalformedInput(onError)
        try {
            built.append(decoder.decode(ByteBuffer.wrap(bytes.toByteArray())))
        } catch (error: CharacterCodingException) {
            built.append(REPLACEMENT.toString().repeat(bytes.size()))
        }
        bytes.reset()
    }

    /** The bytes that GPT-2's signs stand for; of a token with any other sign, its own. */
    private fun bytesOfSigns(text: String): ByteArray {
        val bytes = text.map { BYTE_OF[it] ?: return text.toByteArray() }
        return ByteArray(bytes.size) { bytes[it].toByte() }
    }

    private fun encodePlain(text: String, found: MutableList<Int>) {
        if (text == "") return
        if (!byteLevel) return encodeWord(text.replace(' ', '▁'), found)
        for (word in WORDS.findAll(text)) {
            val symbols = word.value.toByteArray().map { SIGN_OF[it.toInt() and 0xFF] }
            encodeWord(symbols.joinToString(""), found)
        }
    }

    /** Byte-pair encoding: the merge of lowest rank first, the leftmost of equals. */
    private fun encodeWord(word: String, found: MutableList<Int>) {
        val symbols = symbols(word)
        val next = IntArray(symbols.size) { it + 1 }
        val before = IntArray(symbols.size) { it - 1 }
        val waiting = PriorityQueue<Candidate>()
        for (i in 0 until symbols.size - 1) offer(waiting, symbols, i, i + 1)
        while (true) {
            val (merge, left, leftId, rightId) = waiting.poll() ?: break
            val right = next[left]
            if (symbols[left] != leftId || right >= symbols.size || symbols[right] != rightId) continue
            symbols[left] = merge.id
            symbols[right] = GONE
            next[left] = next[right]
            if (next[left] < symbols.size) {
                before[next[left]] = left
                offer(waiting, symbols, left, next[left])
            }
            if (before[left] >= 0) offer(waiting, symbols, before[left], left)
        }
        symbols.filterTo(found) { it != GONE }
    }

    private fun offer(waiting: PriorityQueue<Candidate>, symbols: IntArray, left: Int, right: Int) {
        val merge = merges[pairOf(symbols[left], symbols[right])] ?: return
        waiting.add(Candidate(merge, left, symbols[left], symbols[right]))
    }

    /** One id per character; its bytes' ids where it has none. */
    private fun symbols(word: String): IntArray {
        val symbols = ArrayList<Int>(word.length)
        var at = 0
        while (at < word.length) {
            val size = Character.charCount(word.codePointAt(at))
            val character = word.substring(at, at + size)
            val id = ids[character]
            val bytes = byteIds
            when {
                id != null -> symbols.add(id)
                bytes != null -> character.toByteArray().mapTo(symbols) { bytes[it.toInt() and 0xFF] }
                else -> throw RunException("the tokenizer has no token for '$character'")
            }
            at += size
        }
        return symbols.toIntArray()
    }

    private fun id(text: Any?): Int = ids[text as? String] ?: refuse("merges", text)

    private fun tokenId(value: Any?): Int =
        (value as? Long)?.takeIf { it in 0 until MAX_TOKENS }?.toInt() ?: refuse("a token id", value)

    private fun checkKinds() {
        val shown = if (byteLevel) BYTE_LEVEL else SPACES
        for ((name, kinds) in shown) {
            val kind = kind(root[name])
            if (kind !in kinds) refuse(name, kind)
        }
        if (model["type"] != "BPE") refuse("model.type", model["type"])
        for (name in listOf("dropout", "continuing_subword_prefix", "end_of_word_suffix")) {
            if (model[name] != null && model[name] != "") refuse("model.$name", model[name])
        }
    }

    /** The types of a part, in their order. */
    private fun kind(part: Any?): String = when (part) {
        null -> "none"
        is Map<*, *> -> {
            val parts = part.values.firstOrNull { it is List<*> } as? List<*>
            if (part["type"] == "Sequence" && parts != null) parts.joinToString("+") { kind(it) }
            else part["type"].toString()
        }
        else -> part.toString()
    }

    private class Merge(val rank: Int, val id: Int)

    private data class Candidate(val merge: Merge, val left: Int, val leftId: Int, val rightId: Int) :
        Comparable<Candidate> {
        override fun compareTo(other: Candidate): Int =
            if (merge.rank != other.merge.rank) merge.rank.compareTo(other.merge.rank)
            else left.compareTo(other.left)
    }

    private companion object {
        const val GONE = -1
        const val MAX_TOKENS = 1 shl 24
        const val REPLACEMENT = '\uFFFD'
        val BYTE_TOKEN = Regex("<0x[0-9A-Fa-f]{2}>")
        val BYTE_LEVEL = mapOf(
            "normalizer" to setOf("none"),
            "pre_tokenizer" to setOf("ByteLevel"),
            "decoder" to setOf("ByteLevel")
        )
        val SPACES = mapOf(
            "normalizer" to setOf("Replace"),
            // Splits at spaces, of which the normalizer has left none.
            "pre_tokenizer" to setOf("none", "Split"),
            "decoder" to setOf("Replace+ByteFallback+Fuse")
        )
        val WORDS = Regex(
            "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
        )

        /** GPT-2's sign for each byte: itself where it is visible, else one past 255. */
        val SIGN_OF: CharArray = CharArray(256).also { signs ->
            var numHidden = 0
            for (byte in 0..255) {
                val visible = byte in 33..126 || byte in 161..172 || byte in 174..255
                signs[byte] = (if (visible) byte else 256 + numHidden++).toChar()
            }
        }
        val BYTE_OF: Map<Char, Int> = SIGN_OF.indices.associateBy { SIGN_OF[it] }

        fun pairOf(left: Int, right: Int): Long = (left.toLong() shl 32) or right.toLong()

        fun parse(json: String): Map<*, *> = try {
            parseJson(json) as? Map<*, *> ?: refuse("the file", "no object")
        } catch (error: JsonException) {
            throw RunException("tokenizer.json: not valid JSON (${error.message}); export again")
        }

        fun Map<*, *>.member(key: String): Any = this[key] ?: refuse(key, null)

        fun refuse(what: String, found: Any?): Nothing =
            throw RunException("tokenizer.json: $what is ${found.toString().take(60)}, which this app cannot do")
    }
}

/** The tokens between which a model thinks: <|channel> and <channel|>. */
class Thought(val begin: Int, val end: Int)

/**
 * Turns tokens into text as they come, never splitting a character.
 *
 * Held back is what later tokens may change: byte tokens until their run ends, because one wrong byte
 * makes the whole run wrong, and a replacement character at the end, which may become a letter.
 * Thoughts are left out, as Gemma 4's own template strips them.
 */
class TextStream(private val tokenizer: Tokenizer, private val thought: Thought? = null) {
    private var thinking = false
    private var context = emptyList<Int>() // tokens already decoded, which the next ones continue
    private var numShown = 0 // characters of the context's text already given
    private val bytes = ArrayList<Int>() // the run of byte tokens that the text ends in

    /** The text that these tokens add. */
    fun push(tokenIds: List<Int>): String {
        val shown = tokenIds.filter { isSpoken(it) && tokenizer.isShown(it) }
        val numSettled = shown.indexOfLast { !tokenizer.isByte(it) } + 1
        if (numSettled == 0) {
            bytes.addAll(shown)
            return ""
        }
        val text = decode(bytes + shown.take(numSettled))
        bytes.clear()
        bytes.addAll(shown.drop(numSettled))
        return settle(text, text.length - if (text.endsWith('\uFFFD')) 1 else 0)
    }

    /** What was held back. */
    fun finish(): String {
        val text = decode(bytes)
        bytes.clear()
        return settle(text, text.length)
    }

    private fun isSpoken(id: Int): Boolean {
        if (thought == null || (id != thought.begin && id != thought.end)) return !thinking
        thinking = id == thought.begin
        return false
    }

    private fun decode(tokenIds: List<Int>): String {
        context = context + tokenIds
        return tokenizer.decode(context)
    }

    private fun settle(text: String, end: Int): String {
        val added = text.substring(numShown, maxOf(end, numShown))
        val numHeld = text.length - maxOf(end, numShown)
        // A character has at most four bytes, so a letter that later bytes may complete begins here.
        context = context.takeLast(4)
        numShown = tokenizer.decode(context).length - numHeld
        return added
    }
}
