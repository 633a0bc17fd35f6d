package dev.gemmaexport.loop

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class TokenizerTest {
    private val tiny = golden("tokenizer.json")
    private val tokenizer = Tokenizer(tiny)

    @Test
    fun `text streams whole characters, and all of them`() {
        val text = "Zürich 🙂 東京, and so on; the argparse module's 12 options 🙃🙃 naïve café"
        val stream = TextStream(tokenizer)
        val pieces = tokenizer.encode(text).map { stream.push(listOf(it)) } + stream.finish()
        assertEquals(text, pieces.joinToString(""))
        assertTrue(pieces.none { '\uFFFD' in it })
    }

    @Test
    fun `what is not known is refused by name`() {
        refused(tiny.replaceFirst("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFKC\"}"), "normalizer is NFKC")
        refused(tiny.replaceFirst("\"type\": \"BPE\"", "\"type\": \"Unigram\""), "model.type is Unigram")
        refused(tiny.replaceFirst("\"lstrip\": false", "\"lstrip\": true"), "lstrip is true")
        refused("{}", "model is null")
        refused("[]", "the file is no object")
        refused("{", "not valid JSON")
    }

    private fun refused(json: String, said: String) {
        assertTrue(said, json != tiny)
        val message = try {
            Tokenizer(json)
            null
        } catch (error: RunException) {
            error.message!!
        }
        assertTrue("$message should have said $said", message != null && said in message && '\n' !in message)
    }
}
