package dev.gemmaexport.loop

import java.io.File
import java.util.Base64
import java.util.Random
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
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
        val reference = readReference(file(whole))
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
                readReference(file(bytes))
            } catch (error: RunException) {
                assertFalse("\n" in error.message!!)
            }
        }
    }

    @Test
    fun `a file that is not there is refused`() {
        try {
            readReference(File("nowhere.npz"))
            fail("read it")
        } catch (error: RunException) {
            assertEquals(0, error.message!!.indexOf("nowhere.npz: not a recorded reference"))
        }
    }

    private fun file(bytes: ByteArray): File = temporary.newFile().also { it.writeBytes(bytes) }
}
