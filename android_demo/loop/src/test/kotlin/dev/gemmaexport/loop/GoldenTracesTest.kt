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
    fun `what is repeated is greedy and sampled at every draft length, and auto`() {
        assertTrue(replays.first { it.what == "traces" }.numReplayed >= 50)
        val everyLength = (0L..7L).toSet()
        assertEquals(everyLength, turns("greedy").filter { temperature(it) == 0.0 }.map { it["draft_length"] }.toSet())
        assertEquals(everyLength, turns("sampled").filter { temperature(it) > 0.0 }.map { it["draft_length"] }.toSet())
        val drafted = turns("auto").flatMap { turn -> steps(turn).drop(1).map { it[1] as Long } }
        assertEquals(setOf<Any?>("auto"), turns("auto").map { it["draft_length"] }.toSet())
        assertTrue(drafted.any { it == 0L } && drafted.any { it > 0L })
    }

    @Test
    fun `what is repeated ends at every place of a round of six tokens`() {
        for (name in listOf("stop", "max tokens", "context end")) {
            val rounds = turns(name).filter { steps(it).size > 1 }.map { (steps(it).last()[0] as List<*>).size }
            assertEquals(name, (1..6).toSet(), rounds.toSet())
        }
    }

    @Test
    fun `wrong traces are noticed`() {
        val traces = golden("loop-traces.json")
        val aToken = Regex("\"steps\":\\[\\[\\[(\\d+)")
        val bent = traces
            .replaceFirst("\"draft_length\":3", "\"draft_length\":2")
            .replaceFirst(aToken, "\"steps\":[[[39")
            .replaceFirst("\"seed\":\"3\"", "\"seed\":\"4\"")
        assertEquals(3, replayAll(bent).first { it.what == "traces" }.differences.size)
    }

    private val traces = (parseJson(golden("loop-traces.json")) as Map<*, *>)["traces"] as List<*>

    private fun turns(name: String): List<Map<*, *>> = traces.map { it as Map<*, *> }
        .filter { it["name"] == name }
        .flatMap { it["turns"] as List<*> }
        .map { it as Map<*, *> }

    private fun steps(turn: Map<*, *>): List<List<*>> = (turn["steps"] as List<*>).map { it as List<*> }

    private fun temperature(turn: Map<*, *>): Double = (turn["law"] as Map<*, *>)["temperature"] as Double
}
