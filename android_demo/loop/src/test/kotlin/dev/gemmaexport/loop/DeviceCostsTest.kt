package dev.gemmaexport.loop

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

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
            second(policy(Session(backend, 1000), backend)).numDrafts
        })
    }

    @Test
    fun `a graph wider than the cache is not run`() {
        val backend = scripted(cacheLength = 5)
        val round = second(policy(Session(backend, 1000), backend))
        assertEquals(3, round.numDrafts)
    }

    @Test
    fun `what the first draft of a round takes more is measured`() {
        val (quick, slow) = listOf(false, true).map { cold ->
            val scripted = scripted(verifyTicks = listOf(100, 110, 900, 900), draftTicks = 60)
            val backend = if (cold) ColdDrafts(scripted) else scripted
            autoDraftLength(Session(backend, 1000), backend, 0.9) { scripted.seconds() }
        }
        assertEquals(listOf(1, 0), listOf(quick, slow).map { second(it) }.map { if (it.verified) it.numDrafts else 0 })
    }

    @Test
    fun `what was learnt is what the next policy begins with`() {
        val kept = File.createTempFile("costs", ".json")
        try {
            kept.writeText("nothing that this module wrote")
            val backend = scripted()
            val session = Session(backend, 1000)
            val first = autoDraftLength(session, backend, 0.9, kept) { backend.seconds() }
            val begun = backend.seconds()
            val again = autoDraftLength(session, backend, 0.9, kept) { backend.seconds() } as AutoDraftLength
            assertEquals(begun, backend.seconds(), 0.0) // read, not measured
            first.observe(Outcome(7, 0, 7.0, 9.0, 8))
            remember(first, kept)
            val learnt = (first as AutoDraftLength).toRemember()
            assertEquals(learnt.acceptance, 0.6, 1e-9)
            val last = autoDraftLength(session, backend, 0.9, kept) { backend.seconds() } as AutoDraftLength
            assertEquals(learnt.acceptance, last.toRemember().acceptance, 0.0)
            assertEquals(again.toRemember().acceptance, 0.9, 0.0)
            val read = backend.seconds()
            val dayLater = { System.currentTimeMillis() * 1e-3 + 86401 }
            val anew = autoDraftLength(session, backend, 0.9, kept, dayLater) { backend.seconds() } as AutoDraftLength
            assertTrue(backend.seconds() > read) // measured again
            assertEquals(learnt.acceptance, anew.toRemember().acceptance, 0.0)
        } finally {
            kept.delete()
        }
    }

    /** The decision after the first round, which is plain. */
    private fun second(policy: DraftLength): Round {
        assertEquals(Round(0), policy.nextRound())
        policy.observe(Outcome(0, 0, 0.0, 1e-3, 1))
        return policy.nextRound()
    }

    private fun policy(session: Session, backend: ScriptedBackend) =
        autoDraftLength(session, backend, 0.9) { backend.seconds() }

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
