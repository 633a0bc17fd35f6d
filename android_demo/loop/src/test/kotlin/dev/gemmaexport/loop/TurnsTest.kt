package dev.gemmaexport.loop

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Test

/** Several sessions on one backend. */
class TurnsTest {
    private fun backend() =
        ScriptedBackend(60, 40, 256, intArrayOf(1, 2, 4, 8), 0, 1, listOf(1, 1, 1, 1))

    private fun tokens(session: Session, promptIds: List<Int>, draftLength: Int = 3): List<Int> =
        session.generate(promptIds, GREEDY, Stops(9), draftLength).flatMap { it.tokenIds.asSequence() }.toList()

    @Test
    fun sessionsTakeTurns() {
        val backend = backend()
        val sessions = List(2) { Session(backend, 128) }
        val texts = mutableListOf(listOf(5, 6, 7), listOf(5, 6, 8))
        for (index in listOf(0, 1, 0, 0, 1)) {
            val answer = tokens(sessions[index], texts[index])
            assertEquals(tokens(Session(backend(), 128), texts[index], 0), answer)
            texts[index] = texts[index] + answer + 1
        }
    }

    @Test
    fun aSupersededGenerationSaysSo() {
        val backend = backend()
        val first = Session(backend, 128)
        for (newer in listOf(first, Session(backend, 128))) {
            val old = first.generate(listOf(5, 6, 7), GREEDY, Stops(40), 3).iterator()
            old.next()
            tokens(newer, listOf(5, 8))
            try {
                old.next()
                fail("it went on")
            } catch (error: RunException) {
                assertTrue(error.message!!.startsWith("this answer cannot go on: another one has begun"))
            }
        }
    }
}
