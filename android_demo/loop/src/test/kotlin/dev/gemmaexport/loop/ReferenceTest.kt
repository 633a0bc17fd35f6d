package dev.gemmaexport.loop

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import java.util.Random
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class ReferenceTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val whole: ByteArray by lazy {
        val traces = parseJson(golden("loop-traces.json")) as Map<*, *>
        val check = (traces["checks"] as List<*>)[0] as Map<*, *>
        Base64.getDecoder().decode(check["reference"] as String)
    }

    @Test
    fun `what was recorded is read`() {
        val reference = readReference(file(whole), Int.MAX_VALUE)
        assertEquals(listOf(listOf(7, 3, 21, 9), listOf(5), listOf(1, 2)), reference.promptIds)
        assertEquals(9, reference.numTokens)
        assertEquals(3, reference.draftLength)
    }

    @Test
    fun `a damaged file is refused in one line, or read`() {
        val random = Random(3)
        for (round in 0 until 500) {
            val bytes = whole.copyOf(if (round % 2 == 0) whole.size else random.nextInt(whole.size))
            for (flip in 0..random.nextInt(4)) {
                if (bytes.isNotEmpty()) bytes[random.nextInt(bytes.size)] = random.nextInt(256).toByte()
            }
            try {
                readReference(file(bytes), Int.MAX_VALUE)
            } catch (error: RunException) {
                assertFalse("\n" in error.message!!)
            }
        }
    }

    @Test
    fun `tokens outside the vocabulary and a scale that hides errors are refused`() {
        val scale = whole.copyOf()
        val at = String(scale, Charsets.ISO_8859_1).indexOf("logit_scale.npy")
        val end = String(scale, Charsets.ISO_8859_1).indexOf("\n", at) + 1 // of the array's header
        for (wrong in listOf(Float.NaN, Float.POSITIVE_INFINITY, 0f, -1f, 1e9f)) {
            ByteBuffer.wrap(scale).order(ByteOrder.LITTLE_ENDIAN).putFloat(end, wrong)
            refused("a scale of") { readReference(file(scale), Int.MAX_VALUE) }
        }
        refused("a token outside") { readReference(file(whole), 9) }
    }

    private fun refused(reason: String, read: () -> Unit) {
        try {
            read()
            fail("read it")
        } catch (error: RunException) {
            assertTrue(error.message, reason in error.message!!)
        }
    }

    @Test
    fun `a file that is not there is refused`() {
        try {
            readReference(File("nowhere.npz"), Int.MAX_VALUE)
            fail("read it")
        } catch (error: RunException) {
            assertEquals(0, error.message!!.indexOf("nowhere.npz: not a recorded reference"))
        }
    }

    private fun file(bytes: ByteArray): File = temporary.newFile().also { it.writeBytes(bytes) }
}
