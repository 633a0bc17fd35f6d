package dev.gemmaexport.loop

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

private val replays by lazy { replayAll(golden("loop-traces.json")) }

private fun replayAll(traces: String) = GoldenTraces(traces, golden("tokenizer.json")).replayAll()

class GoldenTracesTest {
    @Test
    fun `the loop repeats what runtime_py did, token by token and round by round`() {
        for (replay in replays) {
            assertEquals(replay.differences.joinToString("\n"), 0, replay.differences.size)
            println("${replay.what}: ${replay.numEqual} of ${replay.numReplayed} equal")
        }
    }

    @Test
    fun `there is something to repeat`() {
        assertTrue(replays.first { it.what == "traces" }.numReplayed >= 50)
    }

    @Test
    fun `a wrong trace is told apart`() {
        val bent = golden("loop-traces.json").replaceFirst("\"draft_length\":3", "\"draft_length\":2")
        val traces = replayAll(bent).first { it.what == "traces" }
        assertEquals(1, traces.differences.size)
    }
}
