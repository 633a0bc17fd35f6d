package dev.gemmaexport.loop

import java.io.File
import java.util.Random
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class LitertlmTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val whole = LitertlmTest::class.java.getResourceAsStream("/toy.litertlm").use { it!!.readBytes() }

    @Test
    fun `models are found and hold models`() {
        val file = file(whole)
        val sections = readModelSections(file)
        val types = listOf("embedder", "per_layer_embedder", "prefill_decode", "mtp_drafter")
        assertEquals(types.map { "tf_lite_$it" }.toSet(), sections.map { it.modelType }.toSet())
        for (section in sections) {
            val into = File(temporary.root, section.modelType)
            extractSection(file, section, into)
            assertEquals(section.end - section.begin, into.length())
            assertEquals("TFL3", into.readBytes().copyOfRange(4, 8).toString(Charsets.UTF_8))
        }
    }

    @Test
    fun `a section that no single call copies arrives whole`() {
        val bytes = ByteArray(40 shl 20) { (it shr 12).toByte() }
        val into = File(temporary.root, "large")
        extractSection(file(bytes), Section("", 5, bytes.size - 3L), into)
        assertArrayEquals(bytes.copyOfRange(5, bytes.size - 3), into.readBytes())
    }

    @Test
    fun `a section past the end of its file leaves nothing`() {
        val into = File(temporary.root, "cut")
        try {
            extractSection(file(ByteArray(100)), Section("", 50, 200), into)
            fail()
        } catch (error: RunException) {
            assertTrue("copy the file again" in error.message!!)
        }
        assertFalse(into.exists())
    }

    @Test
    fun `a damaged file is refused, or read within the file`() {
        val random = Random(4)
        for (round in 0 until 300) {
            val bytes = if (round % 3 == 0) whole.copyOf(random.nextInt(whole.size)) else whole.copyOf()
            for (flip in 0..3) if (bytes.size > 600) bytes[24 + random.nextInt(500)] = random.nextInt(256).toByte()
            try {
                val sections = readModelSections(file(bytes))
                assertTrue(sections.all { it.begin in 1..it.end && it.end <= bytes.size })
            } catch (error: RunException) {
                assertTrue('\n' !in error.message!!)
            }
        }
    }

    private fun file(bytes: ByteArray) = temporary.newFile().also { it.writeBytes(bytes) }
}
