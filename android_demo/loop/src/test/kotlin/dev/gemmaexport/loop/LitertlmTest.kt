package dev.gemmaexport.loop

import java.io.File
import java.util.Random
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
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
