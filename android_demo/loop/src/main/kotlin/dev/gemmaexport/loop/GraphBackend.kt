package dev.gemmaexport.loop

/**
 * The graphs of one .litertlm, by the official signature contract, over one KV buffer that whoever
 * implements this has bound to all of them.
 */
interface Graphs {
    val vocabSize: Int
    val hiddenSize: Int
    val cacheLength: Int
    val perLayerSize: Int // floats of one token's per-layer embedding; 0 without
    val verifyWidths: IntArray // ascending; the first is 1, decode
    val prefillWidths: IntArray // ascending
    val hasDrafter: Boolean

    /** Write a token's embedding to `rows` from `offset` on. */
    fun embed(tokenId: Int, rows: FloatArray, offset: Int)

    fun embedPerLayer(tokenId: Int, rows: FloatArray, offset: Int)

    /** Run the prefill graph of that width. */
    fun prefill(width: Int, inputs: TargetInputs)

    /** Run decode or the verify graph of that width: logits [T, V] and hidden states [T, D], flat. */
    fun verify(width: Int, inputs: TargetInputs): Pair<FloatArray, FloatArray>

    /** Run the drafter once: logits [V] and projected hidden state [D]. */
    fun draft(activations: FloatArray, position: Int, mask: FloatArray): Drafted
}

/** What a target graph of T tokens reads. */
class TargetInputs(width: Int, hiddenSize: Int, perLayerSize: Int, cacheLength: Int) {
    val embeddings = FloatArray(width * hiddenSize) // [T, D]
    val perLayer = FloatArray(width * perLayerSize) // [T, L * P]
    val positions = IntArray(width) // [T]
    internal val causal = CausalMask(width, cacheLength)
    val mask: FloatArray get() = causal.values // [T, C]
}

/** An additive mask [T, C] in which only what changed is rewritten. */
class CausalMask(width: Int, private val cacheLength: Int) {
    val values = FloatArray(width * cacheLength) { HIDDEN }
    private val numVisible = IntArray(width)

    /** Let row i see the KV rows 0 .. numRows + i - 1. */
    fun show(numRows: Int) {
        for (row in numVisible.indices) {
            val start = row * cacheLength
            val wanted = minOf(numRows + row, cacheLength)
            val before = numVisible[row]
            if (wanted > before) values.fill(0f, start + before, start + wanted)
            else values.fill(HIDDEN, start + wanted, start + before)
            numVisible[row] = wanted
        }
    }

    private companion object {
        // What the official runtime writes: two of them still add up to a float.
        val HIDDEN = -0.7f * Float.MAX_VALUE
    }
}

/** The backend over such graphs; runtime_py/backends/litert/backend.py says why it chooses as it does. */
class GraphBackend(private val graphs: Graphs) : Backend {
    override val vocabSize get() = graphs.vocabSize
    override val hasDrafter get() = graphs.hasDrafter
    override val cacheLength get() = graphs.cacheLength
    override val verifyWidths get() = graphs.verifyWidths

    private val prefillInputs = graphs.prefillWidths.associate { it to inputs(it) }
    private val verifyInputs = graphs.verifyWidths.associate { it to inputs(it) }
    private val activations = FloatArray(2 * graphs.hiddenSize)
    private val drafterMask = CausalMask(1, graphs.cacheLength)

    override fun prefill(tokenIds: List<Int>, position: Int) {
        check(tokenIds, position)
        var done = 0
        while (done < tokenIds.size) {
            val rest = tokenIds.subList(done, tokenIds.size)
            done += prefillPart(rest, position + done)
        }
    }

    /** One call; how many tokens it took. */
    private fun prefillPart(tokenIds: List<Int>, position: Int): Int {
        // Whatever runs writes all its rows, padding included: they must fit.
        val room = cacheLength - position
        val fitting = graphs.prefillWidths.filter { it <= room }
        val filled = fitting.lastOrNull { it <= tokenIds.size }
        val width = filled ?: fitting.firstOrNull()?.takeIf { it <= 4 * tokenIds.size }
        if (width != null) {
            val taken = tokenIds.take(width)
            graphs.prefill(width, fill(prefillInputs.getValue(width), taken, position))
            return taken.size
        }
        val widths = verifyWidths.filter { it <= minOf(room, 2 * tokenIds.size) }
        val verify = widths.firstOrNull { it >= tokenIds.size } ?: widths.last()
        val taken = tokenIds.take(verify)
        graphs.verify(verify, fill(verifyInputs.getValue(verify), taken, position))
        return taken.size
    }

    override fun verify(tokenIds: List<Int>, position: Int): Verified {
        check(tokenIds, position)
        val room = cacheLength - position
        val width = verifyWidths.firstOrNull { it >= tokenIds.size && it <= room }
        if (width != null) return verifyPart(width, tokenIds, position)
        // Near the end of the cache, where no graph that is wide enough has room for its rows.
        val narrow = verifyWidths.last { it <= minOf(room, tokenIds.size) }
        val first = verifyPart(narrow, tokenIds.take(narrow), position)
        val rest = verify(tokenIds.drop(narrow), position + narrow)
        return Verified(first.logits + rest.logits, first.hiddens + rest.hiddens)
    }

    private fun verifyPart(width: Int, tokenIds: List<Int>, position: Int): Verified {
        val (logits, hiddens) = graphs.verify(width, fill(verifyInputs.getValue(width), tokenIds, position))
        return Verified(
            Array(tokenIds.size) { logits.copyOfRange(it * vocabSize, (it + 1) * vocabSize) },
            Array(tokenIds.size) { hiddens.copyOfRange(it * graphs.hiddenSize, (it + 1) * graphs.hiddenSize) }
        )
    }

    override fun draft(tokenId: Int, hidden: FloatArray, position: Int): Drafted {
        check(listOf(tokenId), position)
        graphs.embed(tokenId, activations, 0)
        hidden.copyInto(activations, graphs.hiddenSize)
        drafterMask.show(position) // it sees committed rows only
        return graphs.draft(activations, position, drafterMask.values)
    }

    private fun fill(inputs: TargetInputs, tokenIds: List<Int>, position: Int): TargetInputs {
        for ((index, tokenId) in tokenIds.withIndex()) {
            graphs.embed(tokenId, inputs.embeddings, index * graphs.hiddenSize)
            if (graphs.perLayerSize > 0) {
                graphs.embedPerLayer(tokenId, inputs.perLayer, index * graphs.perLayerSize)
            }
        }
        for (index in inputs.positions.indices) inputs.positions[index] = position + index
        inputs.causal.show(position + 1)
        return inputs
    }

    private fun inputs(width: Int) =
        TargetInputs(width, graphs.hiddenSize, graphs.perLayerSize, graphs.cacheLength)

    private fun check(tokenIds: List<Int>, position: Int) {
        if (tokenIds.isEmpty() || position < 0 || position + tokenIds.size > cacheLength) {
            throw RunException(
                "${tokenIds.size} tokens at position $position: the cache of this bundle holds rows " +
                    "0 to ${cacheLength - 1}; shorten the prompt or export with --context"
            )
        }
        if (tokenIds.any { it !in 0 until vocabSize }) {
            throw RunException("a token id outside 0 .. ${vocabSize - 1}; use the bundle's tokenizer")
        }
    }
}
