/**
 * manifest.json: what a bundle holds. docs/bundle-format.md is the specification.
 *
 * A bundle may come from anywhere, so its manifest is checked before anything in it is used:
 * unknown keys, wrong types, values out of range and paths that leave the bundle are refused.
 */
package dev.gemmaexport.loop

import java.io.File
import java.security.MessageDigest

const val FORMAT_MAJOR = 1
const val FORMAT_MINOR = 1
const val MANIFEST_NAME = "manifest.json"
const val MAX_MANIFEST_BYTES = 1L shl 20

/** Size and checksum of one file; a truncated or altered one is refused. */
data class FileEntry(val sizeBytes: Long, val sha256: String)

/** Which of the layers that own KV rows use sliding-window attention over `window` rows. */
data class SlidingEntry(val window: Int, val layers: List<Int>)

/** The model's sizes. */
data class ModelEntry(
    val vocabSize: Int,
    val hiddenSize: Int,
    val numLayers: Int,
    val contextLength: Int, // tokens of prompt and answer together
    val hasDrafter: Boolean,
    val sliding: SlidingEntry? = null // in some 1.0 manifests; ignored, the graph files say it
)

/** What a check requires. */
data class Tolerances(
    val maxLogitError: Double, // relative to the largest logit
    val minAgreement: Double, // share of the original's greedy tokens that are predicted
    val minAcceptanceRatio: Double // accepted first drafts, relative to the original drafter's
)

/** One runtime's graphs. */
data class RuntimeEntry(val model: String, val recipe: String, val tolerances: Tolerances)

/** How text becomes tokens, and which tokens end an answer. */
data class TokenEntry(
    val tokenizer: String,
    val chatTemplate: String?,
    val bosTokenId: Int?,
    val stopTokenIds: List<Int>,
    val specialTokens: Map<String, String> = emptyMap() // by name; missing in some 1.0 manifests
)

/** The whole manifest, major version 1. */
data class Manifest(
    val name: String,
    val device: String, // the target it was exported for
    val madeBy: Map<String, String>, // tool -> version
    val model: ModelEntry,
    val tokens: TokenEntry,
    val draftLength: Int, // the default number of drafts per round
    val runtimes: Map<String, RuntimeEntry>,
    val reference: String,
    val sources: Map<String, String>,
    val files: Map<String, FileEntry>
)

/** Read and check a bundle's manifest, and the presence and size of every file it lists. */
fun readManifest(bundle: File): Manifest {
    if (!bundle.isDirectory) {
        throw RunException("$bundle: no such bundle folder; make one with gemma-export")
    }
    val path = File(bundle, MANIFEST_NAME)
    if (!path.isFile) {
        throw RunException("$bundle: no $MANIFEST_NAME in it, so this is no bundle; see gemma-export")
    }
    if (path.length() > MAX_MANIFEST_BYTES) {
        throw RunException("$path: ${path.length()} bytes; a manifest has at most 1 MiB")
    }
    val manifest = parseManifest(path.readText(), path.toString())
    for ((name, entry) in manifest.files) checkSize(bundle, name, entry)
    return manifest
}

/** Read and check a manifest's JSON text; `where` begins the error message. */
fun parseManifest(json: String, where: String = MANIFEST_NAME): Manifest {
    val values = try {
        parseJson(json)
    } catch (error: JsonException) {
        throw RunException("$where: not valid JSON (${error.message}); export again")
    }
    return manifestOf(values, where)
}

/** Check a manifest's values, as parseJson gives them. */
fun manifestOf(values: Any?, where: String = MANIFEST_NAME): Manifest {
    val found = (values as? Map<*, *>)?.get("format_version")
    val minor = minorVersion(found) ?: throw RunException(
        "$where: manifest format ${shown(found)}, this app reads $FORMAT_MAJOR.x; install the matching app or export again"
    )
    try {
        return manifest(Fields(values, "", ignoresUnknown = minor > FORMAT_MINOR))
    } catch (error: FieldException) {
        throw RunException("$where: ${shown(error.message)}; export again")
    }
}

/** What a file says, as one short line. */
private fun shown(found: Any?): String = CONTROLS.replace(found.toString(), "\uFFFD").take(300)

/** The integer 1 stands for 1.0; null for what is no version of this format. */
private fun minorVersion(found: Any?): Int? = when (found) {
    FORMAT_MAJOR.toLong() -> 0
    is String -> VERSION.matchEntire(found)?.groupValues?.get(1)?.toInt()
    else -> null
}

/** A file of the bundle; throws if a link in it leads outside. */
fun bundleFile(bundle: File, name: String): File {
    val file = File(bundle, name)
    if (!file.canonicalPath.startsWith(bundle.canonicalPath + File.separator)) {
        throw RunException("$bundle: '$name' leads outside the bundle; refuse it or export again")
    }
    return file
}

/** The bundle's LiteRT graphs; throws, with the reason, if it has none. */
fun litertEntry(bundle: File, manifest: Manifest): RuntimeEntry = manifest.runtimes["litert"]
    ?: throw RunException(
        "$bundle: made for ${manifest.runtimes.keys.joinToString()}, and this app runs litert only: " +
            "ExecuTorch's Android library gives each method memory of its own, so that a drafter " +
            "can't read the target's KV rows, and ONNX Runtime is not in the app; export with --runtime litert"
    )

/** Compare every listed file with its checksum; `progress` is called with the bytes read so far. */
fun checkChecksums(bundle: File, manifest: Manifest, progress: (Long) -> Unit = {}) {
    var numRead = 0L
    for ((name, entry) in manifest.files) {
        val found = sha256(bundleFile(bundle, name)) {
            numRead += it
            progress(numRead)
        }
        if (found != entry.sha256) {
            throw RunException(
                "${File(bundle, name)}: sha256 ${found.take(12)}…, the manifest says " +
                    "${entry.sha256.take(12)}…; the file was altered, copy it again"
            )
        }
    }
}

private fun checkSize(bundle: File, name: String, entry: FileEntry) {
    val file = bundleFile(bundle, name)
    if (!file.isFile) {
        throw RunException("$bundle: $name is listed in the manifest but missing; copy it again")
    }
    if (file.length() != entry.sizeBytes) {
        throw RunException(
            "$file: ${file.length()} bytes, the manifest says ${entry.sizeBytes}; the file is " +
                "truncated or altered, copy it again"
        )
    }
}

private fun sha256(file: File, read: (Int) -> Unit): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val chunk = ByteArray(1 shl 20)
    file.inputStream().use { stream ->
        while (true) {
            val size = stream.read(chunk)
            if (size < 0) break
            digest.update(chunk, 0, size)
            read(size)
        }
    }
    return digest.digest().joinToString("") { String.format("%02x", it) }
}

private val RUNTIMES = setOf("litert", "onnx", "executorch")
private val SHA256 = Regex("[0-9a-f]{64}")
private val VERSION = Regex("$FORMAT_MAJOR\\.([1-9][0-9]{0,3})")
private val CONTROLS = Regex("[\\u0000-\\u001f\\u007f]")
private const val MOST_TEXTS = 200 // of one table of texts
private const val LONGEST_TEXT = 1000 // characters, of a path too
private val COUNTS = 1L..Int.MAX_VALUE
private val LAYERS = 0L..Int.MAX_VALUE
private val TOKEN_IDS = 0L..Int.MAX_VALUE

private fun manifest(fields: Fields): Manifest {
    fields.skip("format_version")
    val manifest = Manifest(
        name = fields.text("name", 200),
        device = fields.text("device", 60),
        madeBy = texts(fields.child("made_by")),
        model = model(fields.child("model")),
        tokens = tokens(fields.child("tokens")),
        draftLength = fields.whole("draft_length", 0L..63).toInt(),
        runtimes = runtimes(fields.child("runtimes")),
        reference = fields.path("reference"),
        sources = if ("sources" in fields) texts(fields.child("sources")) else emptyMap(),
        files = fields.child("files").let { it.each { name -> file(it, name) } }
    )
    fields.end()
    checkRules(manifest)
    return manifest
}

/** The rules between fields. */
private fun checkRules(manifest: Manifest) {
    if (manifest.runtimes.isEmpty()) throw FieldException("runtimes: no runtime is listed")
    val used = manifest.runtimes.values.map { it.model } + manifest.reference +
        manifest.tokens.tokenizer + (manifest.tokens.chatTemplate ?: manifest.reference)
    used.firstOrNull { it !in manifest.files }?.let {
        throw FieldException("manifest: '$it' is used but not listed under files")
    }
    val tokenIds = manifest.tokens.stopTokenIds + listOfNotNull(manifest.tokens.bosTokenId)
    tokenIds.firstOrNull { it >= manifest.model.vocabSize }?.let {
        throw FieldException("manifest: token $it of a vocabulary of ${manifest.model.vocabSize}")
    }
}

private fun model(fields: Fields): ModelEntry = ModelEntry(
    vocabSize = fields.whole("vocab_size", COUNTS).toInt(),
    hiddenSize = fields.whole("hidden_size", COUNTS).toInt(),
    numLayers = fields.whole("num_layers", COUNTS).toInt(),
    contextLength = fields.whole("context_length", COUNTS).toInt(),
    hasDrafter = fields.flag("has_drafter"),
    sliding = if ("sliding" in fields) fields.orNull("sliding") { sliding(fields.child("sliding")) } else null
).also { fields.end() }

private fun sliding(fields: Fields): SlidingEntry {
    val window = fields.whole("window", COUNTS).toInt()
    val layers = fields.wholes("layers", LAYERS, 1000).map { it.toInt() }
    if (layers.isEmpty()) throw FieldException("model.sliding.layers: at least one is needed")
    return SlidingEntry(window, layers).also { fields.end() }
}

private fun tokens(fields: Fields): TokenEntry = TokenEntry(
    tokenizer = fields.path("tokenizer"),
    chatTemplate = fields.orNull("chat_template") { fields.path("chat_template") },
    bosTokenId = fields.orNull("bos_token_id") { fields.whole("bos_token_id", TOKEN_IDS).toInt() },
    stopTokenIds = fields.wholes("stop_token_ids", TOKEN_IDS, 64).map { it.toInt() },
    specialTokens = specialTokens(fields)
).also { fields.end() }

private fun specialTokens(fields: Fields): Map<String, String> {
    if ("special_tokens" !in fields) return emptyMap()
    return fields.orNull("special_tokens") { texts(fields.child("special_tokens")) }.orEmpty()
}

private fun runtimes(fields: Fields): Map<String, RuntimeEntry> {
    val unknown = fields.keys - RUNTIMES
    if (unknown.isNotEmpty() && !fields.ignoresUnknown) {
        throw FieldException("runtimes.${unknown.first()}: one of ${RUNTIMES.joinToString()} is needed")
    }
    return (fields.keys - unknown).associateWith { runtime(fields.child(it)) }
}

private fun runtime(fields: Fields): RuntimeEntry {
    return RuntimeEntry(
        model = fields.path("model"),
        recipe = fields.text("recipe", 200),
        tolerances = tolerances(fields.child("tolerances"))
    ).also { fields.end() }
}

private fun tolerances(fields: Fields): Tolerances = Tolerances(
    maxLogitError = fields.number("max_logit_error", 1.0) { it > 0 && it <= 10 },
    minAgreement = fields.number("min_agreement", 0.0) { it in 0.0..1.0 },
    minAcceptanceRatio = fields.number("min_acceptance_ratio", 0.5) { it in 0.0..1.0 }
).also { fields.end() }

private fun file(owner: Fields, name: String): FileEntry {
    insideBundle(name, "files.$name")
    val fields = owner.child(name)
    val entry = FileEntry(fields.whole("size_bytes", 0L..(1L shl 40)), fields.text("sha256", 64))
    if (!SHA256.matches(entry.sha256)) {
        throw FieldException("files.$name.sha256: 64 hexadecimal digits are needed")
    }
    return entry.also { fields.end() }
}

private fun texts(fields: Fields): Map<String, String> {
    if (fields.keys.size > MOST_TEXTS || fields.keys.any { it.numCharacters > LONGEST_TEXT }) {
        fields.failHere("at most $MOST_TEXTS keys of at most $LONGEST_TEXT characters are allowed")
    }
    return fields.each { fields.text(it, LONGEST_TEXT, 0) }
}

/** Names joined by "/", none of them empty, "." or "..". */
private fun insideBundle(path: String, where: String) {
    val isPlain = path.split('/').none { it in setOf("", ".", "..") } && '\\' !in path &&
        path.numCharacters <= LONGEST_TEXT && !CONTROLS.containsMatchIn(path)
    if (!isPlain) {
        throw FieldException("$where: '$path' leaves the bundle or is no plain path")
    }
}

/** Code points, as the schema counts them. */
private val String.numCharacters get() = codePointCount(0, length)

private class FieldException(message: String) : Exception(message)

/**
 * The members of one JSON object, read by name and type.
 *
 * `ignoresUnknown`: whether members that are never read are allowed, as in a newer minor version.
 */
private class Fields(values: Any?, private val where: String, val ignoresUnknown: Boolean) {
    private val values = values as? Map<*, *> ?: throw FieldException("$where: an object is needed")
    private val asked = HashSet<String>()

    operator fun contains(key: String) = key in values

    val keys: Set<String> get() = values.keys.map { it as String }.toSet()

    fun child(key: String) = Fields(value(key), at(key), ignoresUnknown)

    /** Marks a member as known that was read elsewhere. */
    fun skip(key: String) {
        value(key)
    }

    fun text(key: String, longest: Int, shortest: Int = 1): String {
        val text = value(key) as? String ?: fail(key, "a text is needed")
        if (text.numCharacters !in shortest..longest) fail(key, "$shortest to $longest characters are needed")
        return text
    }

    fun path(key: String): String = text(key, Int.MAX_VALUE, 0).also { insideBundle(it, at(key)) }

    fun whole(key: String, range: LongRange): Long = inRange(key, value(key), range)

    fun wholes(key: String, range: LongRange, most: Int): List<Long> {
        val items = value(key) as? List<*> ?: fail(key, "a list is needed")
        if (items.size > most) fail(key, "at most $most items are allowed")
        return items.map { inRange(key, it, range) }
    }

    fun flag(key: String): Boolean = value(key) as? Boolean ?: fail(key, "true or false is needed")

    fun number(key: String, default: Double, allowed: (Double) -> Boolean): Double {
        if (key !in this) return default
        val value = value(key) as? Number ?: fail(key, "a number is needed")
        return value.toDouble().also { if (!allowed(it)) fail(key, "$it is out of range") }
    }

    fun <T> orNull(key: String, read: () -> T): T? = if (value(key) == null) null else read()

    /** Every member, by name. */
    fun <T> each(read: (String) -> T): Map<String, T> = keys.associateWith(read)

    fun end() {
        if (ignoresUnknown) return
        keys.firstOrNull { it !in asked }?.let { fail(it, "unknown key") }
    }

    private fun value(key: String): Any? {
        if (key !in values) fail(key, "missing")
        asked.add(key)
        return values[key]
    }

    private fun inRange(key: String, value: Any?, range: LongRange): Long {
        val whole = value as? Long ?: fail(key, "a whole number is needed")
        if (whole !in range) fail(key, "$whole is outside ${range.first} .. ${range.last}")
        return whole
    }

    private fun at(key: String) = if (where == "") key else "$where.$key"

    fun failHere(message: String): Nothing = throw FieldException("$where: $message")

    private fun fail(key: String, message: String): Nothing = throw FieldException("${at(key)}: $message")
}
