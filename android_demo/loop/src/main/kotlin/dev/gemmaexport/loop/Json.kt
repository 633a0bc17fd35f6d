package dev.gemmaexport.loop

/** A JSON document that is none; what is wrong, and where. */
class JsonException(message: String, val offset: Int) : Exception("$message at character $offset")

/**
 * Read one JSON document, strictly, from a source that is not trusted.
 *
 * Objects are Map<String, Any?> in their order, arrays List<Any?>, whole numbers Long, others Double.
 * Refused, besides what is no JSON: nesting deeper than MAX_DEPTH, a key twice in an object, whole
 * numbers beyond 64 bits.
 */
fun parseJson(text: String): Any? = JsonParser(text).document()

private const val MAX_DEPTH = 32

private class JsonParser(private val text: String) {
    private var at = 0

    fun document(): Any? {
        val value = value(0)
        skipSpace()
        if (at < text.length) fail("text after the end")
        return value
    }

    private fun value(depth: Int): Any? {
        if (depth > MAX_DEPTH) fail("nested deeper than $MAX_DEPTH")
        skipSpace()
        return when (peek()) {
            '{' -> objectAt(depth)
            '[' -> arrayAt(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun objectAt(depth: Int): Map<String, Any?> {
        val members = LinkedHashMap<String, Any?>()
        at++
        skipSpace()
        if (peek() == '}') return members.also { at++ }
        while (true) {
            skipSpace()
            if (peek() != '"') fail("a key is missing")
            val key = string()
            skipSpace()
            take(':')
            if (key in members) fail("\"$key\" a second time")
            members[key] = value(depth + 1)
            skipSpace()
            if (peek() == '}') return members.also { at++ }
            take(',')
        }
    }

    private fun arrayAt(depth: Int): List<Any?> {
        val values = ArrayList<Any?>()
        at++
        skipSpace()
        if (peek() == ']') return values.also { at++ }
        while (true) {
            values.add(value(depth + 1))
            skipSpace()
            if (peek() == ']') return values.also { at++ }
            take(',')
        }
    }

    private fun string(): String {
        val built = StringBuilder()
        at++
        while (true) {
            val next = peek()
            at++
            when {
                next == '"' -> return built.toString()
                next == '\\' -> built.append(escaped())
                next < ' ' -> fail("a control character in a string")
                else -> built.append(next)
            }
        }
    }

    private fun escaped(): Char {
        val next = peek()
        at++
        val plain = "\"\\/bfnrt".indexOf(next)
        if (plain >= 0) return "\"\\/\b\u000c\n\r\t"[plain]
        if (next != 'u') fail("an unknown escape")
        val digits = text.substring(at, minOf(at + 4, text.length))
        if (!HEX.matches(digits)) fail("four hexadecimal digits are missing")
        at += 4
        return digits.toInt(16).toChar()
    }

    private fun number(): Any {
        val found = NUMBER.find(text, at)
        if (found == null || found.range.first != at) fail("a value is missing")
        at = found.range.last + 1
        val digits = found.value
        if (digits.any { it in ".eE" }) {
            val number = digits.toDouble()
            if (number.isInfinite()) fail("a number beyond a double")
            return number
        }
        return digits.toLongOrNull() ?: fail("a whole number beyond 64 bits")
    }

    private fun word(word: String, value: Any?): Any? {
        if (!text.startsWith(word, at)) fail("a value is missing")
        at += word.length
        return value
    }

    private fun take(wanted: Char) {
        if (peek() != wanted) fail("\"$wanted\" is missing")
        at++
    }

    private fun peek(): Char = if (at < text.length) text[at] else fail("the end came too early")

    private fun skipSpace() {
        while (at < text.length && text[at] in " \t\n\r") at++
    }

    private fun fail(message: String): Nothing = throw JsonException(message, at)

    private companion object {
        val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")
        val HEX = Regex("[0-9a-fA-F]{4}")
    }
}
