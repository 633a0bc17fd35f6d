package dev.gemmaexport.loop

import java.io.File
import java.nio.file.Files
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class ManifestTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val golden = golden("manifest-1.json")

    @Test
    fun `the golden manifest of format 1 is read`() {
        val manifest = parseManifest(golden)
        assertEquals("model.litertlm", manifest.runtimes.getValue("litert").model)
        assertEquals(ModelEntry(300, 4, 2, 128, true), manifest.model)
        assertEquals(TokenEntry("tokenizer.json", "chat_template.jinja", 0, listOf(1)), manifest.tokens)
        assertEquals(Tolerances(0.0001, 1.0, 0.9), manifest.runtimes.getValue("litert").tolerances)
    }

    @Test
    fun `the golden manifest of format 1 1 is read`() {
        val manifest = parseManifest(golden("manifest-1.1.json"))
        assertEquals(mapOf("bos_token" to "<bos>", "eos_token" to "<stop>"), manifest.tokens.specialTokens)
        assertEquals(setOf("litert", "onnx"), manifest.runtimes.keys)
        assertEquals(setOf("target"), manifest.sources.keys)
    }

    @Test
    fun `every case that the schema gives is refused or read as it says`() {
        val cases = parseJson(golden("manifest-cases.json")) as Map<*, *>
        fun each(name: String) = (cases[name] as List<*>).map { it as Map<*, *> }
        for (case in each("refused_by_schema") + each("refused_by_rules")) {
            try {
                manifestOf(edited(cases["manifest"], case["edits"]))
                fail("took ${case["why"]}: ${case["edits"]}")
            } catch (error: RunException) {
                assertFalse("\n" in error.message!!)
            }
        }
        for (case in each("accepted") + each("accepted_of_a_newer_minor")) {
            manifestOf(edited(cases["manifest"], case["edits"]))
        }
    }

    /** As in tests/manifest_schema.py: [path] removes what is there, [path, value] puts a value there. */
    private fun edited(values: Any?, edits: Any?): Any? =
        (edits as List<*>).map { it as List<*> }.fold(values) { edited, edit -> edited(edited, edit[0] as List<*>, edit.drop(1)) }

    private fun edited(values: Any?, at: List<*>, value: List<Any?>): Any? = when {
        at.isEmpty() -> value.single()
        values is List<*> -> {
            val index = (at[0] as Long).toInt()
            values.mapIndexed { i, item -> if (i == index) edited(item, at.drop(1), value) else item }
        }
        values is Map<*, *> && at.size == 1 && value.isEmpty() -> values - at[0]
        values is Map<*, *> -> values + (at[0] to edited(values[at[0]], at.drop(1), value))
        else -> error("nothing at $at")
    }

    @Test
    fun `what is left out has its default`() {
        val bare = parseManifest(golden.replace(Regex("\"max_logit_error\"[^}]*"), ""))
        assertEquals(Tolerances(1.0, 0.0, 0.5), bare.runtimes.getValue("litert").tolerances)
        assertEquals(emptyMap<String, String>(), bare.sources)
    }

    @Test
    fun `layers that slide may be named`() {
        val drafter = "\"has_drafter\": true"
        fun with(sliding: String) = golden.replace(drafter, "$drafter, \"sliding\": $sliding")
        assertEquals(null, parseManifest(golden).model.sliding)
        assertEquals(null, parseManifest(with("null")).model.sliding)
        val named = parseManifest(with("{\"window\": 512, \"layers\": [0, 3]}")).model
        assertEquals(SlidingEntry(512, listOf(0, 3)), named.sliding)
    }

    @Test
    fun `special tokens may be named`() {
        val stops = "\"stop_token_ids\""
        fun with(tokens: String) = parseManifest(golden.replace(stops, "\"special_tokens\": $tokens, $stops")).tokens
        assertEquals(mapOf("eos_token" to "<eos>"), with("{\"eos_token\": \"<eos>\"}").specialTokens)
        assertEquals(emptyMap<String, String>(), with("null").specialTokens)
        refused(stops, "\"special_tokens\": {\"eos_token\": 1}, $stops", "tokens.special_tokens.eos_token")
    }

    @Test
    fun `no path leaves the bundle`() {
        for (path in listOf("../elsewhere", "/etc/passwd", "a/../../b", "..", "", ".", "a\\\\b", "a\\u0000b")) {
            refused("\"reference\": \"reference.npz\"", "\"reference\": \"$path\"", "leaves the bundle")
        }
        refused("\"model.litertlm\": {", "\"../model.litertlm\": {", "leaves the bundle")
    }

    @Test
    fun `whatever is wrong is said in one line`() {
        refused("\"format_version\": 1", "\"format_version\": 2", "manifest format 2, this app reads 1.x")
        refused("\"format_version\": 1", "\"format\": 1", "manifest format null")
        refused("\"draft_length\": 3", "\"draft_length\": -1", "draft_length: -1 is outside 0 .. 63")
        refused("\"draft_length\": 3", "\"draft_length\": 3, \"surprise\": 1", "surprise: unknown key")
        refused("\"draft_length\": 3", "\"draft_length\": 3, \"draft_length\": 3", "a second time")
        refused("\"draft_length\": 3", "\"draft_length\": 3.5", "a whole number is needed")
        refused("\"draft_length\": 3,", "", "draft_length: missing")
        refused("\"vocab_size\": 300", "\"vocab_size\": \"300\"", "model.vocab_size: a whole number")
        refused("\"vocab_size\": 300", "\"vocab_size\": 1000000000000", "model.vocab_size: 1000000000000")
        refused("\"vocab_size\": 300", "\"vocab_size\": 99999999999999999999", "beyond 64 bits")
        refused("\"hidden_size\": 4", "\"hidden_size\": 0", "model.hidden_size: 0 is outside")
        refused("\"has_drafter\": true", "\"has_drafter\": 1", "true or false is needed")
        refused("\"litert\": {", "\"cuda\": {", "runtimes.cuda")
        refused("\"reference\": \"reference.npz\"", "\"reference\": \"other.npz\"", "'other.npz' is used but not")
        refused("\"gemma-export\": \"0.1.0\"", "\"two\\nlines\": 1", "made_by.two\uFFFDlines: a text is needed")
        refused("\"min_agreement\": 1.0", "\"min_agreement\": 1.1", "min_agreement: 1.1 is out of range")
        refused("\"name\": \"scripted\"", "\"name\": \"\"", "name: 1 to 200 characters")
        refused("\"model\": {", "\"model\": 3, \"was\": {", "model: an object is needed")
        refused("0000000000\"", "000000000x\"", "sha256: 64 hexadecimal digits")
        refused("{", "[{", "not valid JSON")
    }

    @Test
    fun `every beginning of a manifest is refused, and none breaks the reader`() {
        for (length in 0 until golden.trimEnd().length) {
            try {
                parseManifest(golden.take(length))
                fail("took the first $length characters")
            } catch (error: RunException) {
                assertFalse("\n" in error.message!!)
            }
        }
    }

    @Test
    fun `files are compared with what is said of them`() {
        val bundle = bundle()
        checkChecksums(bundle, readManifest(bundle))
        val model = File(bundle, "model.litertlm")
        model.writeText("altered!")
        assertSaid("sha256") { checkChecksums(bundle, readManifest(bundle)) }
        model.writeText("cut")
        assertSaid("3 bytes, the manifest says 8") { readManifest(bundle) }
        model.delete()
        assertSaid("listed in the manifest but missing") { readManifest(bundle) }
    }

    @Test
    fun `a link that leads outside is refused`() {
        val bundle = bundle()
        val model = File(bundle, "model.litertlm")
        val outside = temporary.newFile("outside")
        model.copyTo(outside, overwrite = true)
        model.delete()
        Files.createSymbolicLink(model.toPath(), outside.toPath())
        assertSaid("leads outside the bundle") { readManifest(bundle) }
    }

    @Test
    fun `a bundle for another runtime is refused with the reason`() {
        val other = parseManifest(golden.replaceFirst("\"litert\": {", "\"executorch\": {"))
        assertSaid("made for executorch, and this app runs litert only: ExecuTorch's Android library") {
            litertEntry(File("toy"), other)
        }
        assertEquals("model.litertlm", litertEntry(File("toy"), parseManifest(golden)).model)
    }

    @Test
    fun `a folder that is no bundle, and a huge manifest, are refused`() {
        assertSaid("no such bundle folder") { readManifest(File("nowhere")) }
        assertSaid("no manifest.json in it") { readManifest(temporary.newFolder()) }
        val bundle = bundle()
        File(bundle, MANIFEST_NAME).appendText(" ".repeat(1 shl 20))
        assertSaid("at most 1 MiB") { readManifest(bundle) }
    }

    private fun bundle(): File {
        val bundle = temporary.newFolder()
        for (name in parseManifest(golden).files.keys) File(bundle, name).writeText("whatever")
        // sha256 of "whatever"
        val digest = "85738f8f9a7f1b04b5329c590ebcb9e425925c6d0984089c43a022de4f19c281"
        val values = golden.replace("0".repeat(64), digest).replace("\"size_bytes\": 0", "\"size_bytes\": 8")
        File(bundle, MANIFEST_NAME).writeText(values)
        return bundle
    }

    private fun refused(old: String, new: String, said: String) {
        assertTrue(old, old in golden)
        assertSaid(said) { parseManifest(golden.replaceFirst(old, new)) }
    }

    private fun assertSaid(said: String, run: () -> Unit) {
        val message = try {
            run()
            null
        } catch (error: RunException) {
            error.message!!
        }
        assertTrue("$message should have said $said", message != null && said in message && '\n' !in message)
    }
}
