package dev.gemmaexport.loop

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class GraphBackendTest {
    private val prompt = List(23) { (7 * it + 3) % 40 }

    @Test
    fun `the loop over graphs does what it does over the backend that plays them`() {
        for (cacheLength in listOf(24, 27, 31, 33, 64, 128)) {
            for (draftLength in listOf(0, 3, 7)) {
                val wanted = steps(scripted(cacheLength), draftLength)
                val graphs = PlayedGraphs(scripted(cacheLength))
                assertEquals(wanted, steps(GraphBackend(graphs), draftLength))
                assertTrue(graphs.numPrefills > 0)
            }
        }
    }

    @Test
    fun `more tokens than have room for their padding are verified in parts`() {
        val wanted = scripted(30)
        val backend = GraphBackend(PlayedGraphs(scripted(30)))
        for (it in listOf(wanted, backend)) it.prefill(prompt, 0)
        val tokens = listOf(1, 2, 3, 4, 5, 6, 7)
        val found = backend.verify(tokens, 23).logits.map { it.toList() }
        val longer = scripted(64).also { it.prefill(prompt, 0) }
        assertEquals(longer.verify(tokens, 23).logits.map { it.toList() }, found)
    }

    @Test
    fun `plain turns are written as the template writes them`() {
        val turns = listOf(Turn(true, " Hello "), Turn(false, "Hi"), Turn(true, "Bye"))
        val wanted = "<bos><|turn>user\nHello<turn|>\n<|turn>model\nHi<turn|>\n<|turn>user\nBye<turn|>\n<|turn>model\n"
        assertEquals(wanted, renderChat(turns, "<bos>"))
    }

    private fun scripted(cacheLength: Int) =
        ScriptedBackend(80, 40, cacheLength, intArrayOf(1, 2, 4, 8), 0, 1, listOf(1, 1, 1, 1))

    private fun steps(backend: Backend, draftLength: Int): List<Step> {
        val sampling = SamplingParams(temperature = 0.7, topP = 0.9, seed = 5)
        return Session(backend, 1000).generate(prompt, sampling, Stops(30), draftLength).toList()
    }

    /** Graphs whose embedding of a token is its id, and which check what masks and positions say. */
    private class PlayedGraphs(private val backend: ScriptedBackend) : Graphs {
        override val vocabSize = backend.vocabSize
        override val hiddenSize = 4
        override val cacheLength = backend.cacheLength
        override val perLayerSize = 2
        override val verifyWidths = backend.verifyWidths
        override val prefillWidths = intArrayOf(8, 16)
        override val hasDrafter = true
        var numPrefills = 0

        override fun embed(tokenId: Int, rows: FloatArray, offset: Int) =
            rows.fill(tokenId.toFloat(), offset, offset + hiddenSize)

        override fun embedPerLayer(tokenId: Int, rows: FloatArray, offset: Int) =
            rows.fill(tokenId + 1f, offset, offset + perLayerSize)

        override fun prefill(width: Int, inputs: TargetInputs) {
            numPrefills++
            backend.prefill(tokens(width, inputs), inputs.positions[0])
        }

        override fun verify(width: Int, inputs: TargetInputs): Pair<FloatArray, FloatArray> {
            val verified = backend.verify(tokens(width, inputs), inputs.positions[0])
            return Pair(flat(verified.logits), flat(verified.hiddens))
        }

        override fun draft(activations: FloatArray, position: Int, mask: FloatArray): Drafted {
            assertEquals(position, mask.count { it == 0f })
            return backend.draft(activations[0].toInt(), activations.copyOfRange(4, 8), position)
        }

        private fun tokens(width: Int, inputs: TargetInputs): List<Int> {
            for (row in 0 until width) {
                val seen = inputs.mask.slice(row * cacheLength until (row + 1) * cacheLength)
                assertEquals(inputs.positions[row] + 1, seen.takeWhile { it == 0f }.size)
                assertEquals(inputs.positions[row] + 1, seen.count { it == 0f })
                val untouched = inputs.perLayer[row * 2] == 0f // padding that no call has filled yet
                assertTrue(untouched || inputs.embeddings[row * 4] + 1 == inputs.perLayer[row * 2])
            }
            return (0 until width).map { inputs.embeddings[it * 4].toInt() }
        }

        private fun flat(rows: Array<FloatArray>): FloatArray = rows.flatMap { it.asList() }.toFloatArray()
    }
}
