package dev.gemmaexport.loop

import org.junit.Assert.assertEquals
import org.junit.Assert.fail
import org.junit.Test

class JsonTest {
    @Test
    fun `values of every kind are read`() {
        val text = " {\"a\": [1, -2.5e3, true, false, null, {}], \"\\u00e9\\n\\\"\": \"\u00fc\\\\\"} "
        val wanted = mapOf("a" to listOf(1L, -2500.0, true, false, null, emptyMap<String, Any>()), "\u00e9\n\"" to "\u00fc\\")
        assertEquals(wanted, parseJson(text))
        assertEquals(Long.MIN_VALUE, parseJson("-9223372036854775808"))
    }

    @Test
    fun `doubles keep their bits`() {
        for (value in listOf(0.1, 1e-300, Double.MIN_VALUE, Double.MAX_VALUE, 1.0 / 3)) {
            assertEquals(value, parseJson(value.toString()))
        }
    }

    @Test
    fun `what is no JSON is refused`() {
        val bad = listOf(
            "", "{", "[", "[1", "[1,]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "'a'", "\"", "\"\\x\"",
            "\"\\u12g4\"", "\"\\u+123\"", "\"\n\"", "01", "1.", ".5", "+1", "-", "1e", "tru", "nul", "NaN", "Infinity",
            "1 2", "1e999", "9223372036854775808", "{\"a\":1,\"a\":1}", "[".repeat(100) + "]".repeat(100),
            "[".repeat(1000000)
        )
        for (text in bad) {
            try {
                parseJson(text)
                fail("took ${text.take(50)}")
            } catch (error: JsonException) {
                assertEquals(-1, error.message!!.indexOf('\n'))
            }
        }
    }
}
