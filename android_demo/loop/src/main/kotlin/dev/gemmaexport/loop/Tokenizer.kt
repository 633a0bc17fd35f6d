package dev.gemmaexport.loop

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
            val text = texts.getOrNull(id)
            if (text == null || id in special) continue
            val byte = byteIds?.indexOf(id) ?: -1
            when {
                byte >= 0 -> bytes.write(byte)
                byteLevel && !isAdded(text) -> text.forEach { bytes.write(BYTE_OF.getValue(it)) }
                else -> {
                    flush(bytes, built)
                    built.append(if (byteLevel) text else text.replace('▁', ' '))
                }
            }
        }
        flush(bytes, built)
        return built.toString()
    }

    /** How a token is written; "" if there is none. */
    fun text(tokenId: Int): String = texts.getOrNull(tokenId).orEmpty()

    private fun isAdded(text: String) = text != "" && added[text[0]]?.contains(text) == true

    private fun flush(bytes: java.io.ByteArrayOutputStream, built: StringBuilder) {
        if (bytes.size() == 0) return
        val text = bytes.toByteArray().toString(Charsets.UTF_8)
        // The library decodes bytes that are no UTF-8 to one sign each, where they stand for bytes.
        val broken = !byteLevel && REPLACEMENT in text
        built.append(if (broken) REPLACEMENT.toString().repeat(bytes.size()) else text)
        bytes.reset()
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

/**
 * Turns tokens into text as they come, never splitting a character.
 *
 * A token may end in the middle of a character, so text is held back while it ends in \uFFFD.
 */
class TextStream(private val tokenizer: Tokenizer) {
    private var tail = emptyList<Int>() // tokens whose text is context for the next
    private var numShown = 0 // characters of the tail's text already given

    /** The text that these tokens add. */
    fun push(tokenIds: List<Int>): String {
        tail = tail + tokenIds
        val text = tokenizer.decode(tail)
        if (text.endsWith('\uFFFD')) return ""
        val added = text.drop(numShown)
        numShown = text.length
        if (tail.size > MAX_TAIL) {
            tail = tail.takeLast(KEPT_TAIL)
            numShown = tokenizer.decode(tail).length
        }
        return added
    }

    /** What was held back. */
    fun finish(): String = tokenizer.decode(tail).drop(numShown)

    private companion object {
        const val MAX_TAIL = 16
        const val KEPT_TAIL = 4
    }
}
