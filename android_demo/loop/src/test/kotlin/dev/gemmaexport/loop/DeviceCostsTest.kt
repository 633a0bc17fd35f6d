package dev.gemmaexport.loop

import org.junit.Assert.assertEquals
import org.junit.Test

class DeviceCostsTest {
    private val prompt = listOf(7, 3, 21, 9)

    @Test
    fun `a conversation that is measured in between says what it would have said`() {
        val wanted = conversation { _, _ -> }
        assertEquals(wanted, conversation { session, backend -> policy(session, backend) })
    }

    @Test
    fun `drafts are made where they pay, as many as pay best`() {
        assertEquals(listOf(7, 3, 0), listOf(listOf(100, 103, 105, 110), listOf(100, 103, 105, 900), listOf(100, 900, 900, 900)).map {
            val backend = scripted(verifyTicks = it)
            policy(Session(backend, 1000), backend).nextRound().numDrafts
        })
    }

    @Test
    fun `a graph wider than the cache is not run`() {
        val backend = scripted(cacheLength = 5)
        val round = policy(Session(backend, 1000), backend).nextRound()
        assertEquals(3, round.numDrafts)
    }

    @Test
    fun `what the first draft of a round takes more is measured`() {
        val (quick, slow) = listOf(false, true).map { cold ->
            val scripted = scripted(verifyTicks = listOf(100, 110, 900, 900), draftTicks = 60)
            val backend = if (cold) ColdDrafts(scripted) else scripted
            measuredPolicy(Session(backend, 1000), backend, prior = 0.9) { scripted.seconds() }
        }
        assertEquals(listOf(1, 0), listOf(quick, slow).map { it.nextRound().numDrafts })
    }

    private fun policy(session: Session, backend: ScriptedBackend) =
        measuredPolicy(session, backend, prior = 0.9) { backend.seconds() }

    private fun conversation(between: (Session, ScriptedBackend) -> Unit): List<Int> {
        val backend = scripted()
        val session = Session(backend, 1000)
        val first = tokens(session, prompt)
        between(session, backend)
        return first + tokens(session, prompt + first + listOf(1, 2))
    }

    private fun tokens(session: Session, promptIds: List<Int>): List<Int> =
        session.generate(promptIds, GREEDY, Stops(9), 3).toList().flatMap { it.tokenIds }

    private fun scripted(
        cacheLength: Int = 64,
        verifyTicks: List<Int> = listOf(100, 103, 105, 110),
        draftTicks: Int = 1
    ) = ScriptedBackend(80, 40, cacheLength, intArrayOf(1, 2, 4, 8), 0, draftTicks, verifyTicks)

    /** A draft takes twice as long after a target call. */
    private class ColdDrafts(private val scripted: ScriptedBackend) : Backend by scripted {
        private var cold = false

        override fun verify(tokenIds: List<Int>, position: Int): Verified {
            cold = true
            return scripted.verify(tokenIds, position)
        }

        override fun draft(tokenId: Int, hidden: FloatArray, position: Int): Drafted {
            if (cold) scripted.draft(tokenId, hidden, position)
            cold = false
            return scripted.draft(tokenId, hidden, position)
        }
    }
}
