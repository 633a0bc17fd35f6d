package dev.gemmaexport.loop

/**
 * The twin of tests/runtime_py/scripted_backend.py, which says what it is; both compute the same floats.
 */
class ScriptedBackend(
    private val skill: Int,
    override val vocabSize: Int,
    override val cacheLength: Int,
    override val verifyWidths: IntArray,
    private val levels: Int,
    private val draftTicks: Int,
    private val verifyTicks: List<Int>
) : Backend {
    private var ticks = 0L

    /** Its clock, for the loop to look at. */
    fun seconds(): Double = ticks * TICK

    /** The policy that chooses by what this backend's calls cost. */
    fun policy(): DraftLength {
        val roundS = List(verifyWidths.last()) { length ->
            length * (draftTicks * TICK) + verifyTicks[verifyWidths.indexOfFirst { it > length }] * TICK
        }
        return AutoDraftLength(Known(roundS, draftTicks * TICK, 0.7))
    }

    override val hasDrafter = true
    private val rows = IntArray(cacheLength) { NEVER_WRITTEN }
    private var drafted = ArrayList<Int>()
    private var position = -1 // of the round being drafted

    override fun prefill(tokenIds: List<Int>, position: Int) = write(tokenIds, position, tokenIds.size)

    override fun verify(tokenIds: List<Int>, position: Int): Verified {
        val graph = verifyWidths.indexOfFirst { it >= tokenIds.size }
        write(tokenIds, position, verifyWidths[graph])
        ticks += verifyTicks[graph]
        this.position = -1
        val prefixes = tokenIds.indices.map { rows.take(position + it + 1) }
        return Verified(
            prefixes.map { logits(it) }.toTypedArray(),
            prefixes.map { hidden(it) }.toTypedArray()
        )
    }

    override fun draft(tokenId: Int, hidden: FloatArray, position: Int): Drafted {
        ticks += draftTicks
        val committed = rows.take(position)
        if (position != this.position) {
            this.position = position
            drafted = ArrayList()
            check(hidden.contentEquals(hidden(committed))) { "a draft from another hidden state" }
        }
        drafted.add(tokenId)
        val tokens = committed + drafted
        val logits = logits(tokens)
        val right = (hash(tokens, SKILL) ushr 40) % 100 < skill
        return Drafted(if (right) logits else rolled(logits), hidden)
    }

    private fun write(tokenIds: List<Int>, position: Int, width: Int) {
        check(position + width <= cacheLength) { "rows past the KV buffer" }
        for (i in 0 until width) rows[position + i] = tokenIds.getOrElse(i) { PADDING }
    }

    private fun logits(tokens: List<Int>): FloatArray {
        check(tokens.all { it >= 0 }) { "attended a row that nothing was written to" }
        return logits(hash(tokens, LOGITS), vocabSize, levels)
    }

    private fun hidden(tokens: List<Int>): FloatArray = logits(hash(tokens, HIDDEN), HIDDEN_SIZE, 0)

    private fun rolled(logits: FloatArray) =
        FloatArray(logits.size) { logits[(it + logits.size - 1) % logits.size] }

    companion object {
        private const val TICK = 1.0 / (1 shl 16) // seconds
        private const val NEVER_WRITTEN = -1
        private const val PADDING = -2
        private const val HIDDEN_SIZE = 4
        private const val LOGITS = 1L
        private const val HIDDEN = 2L
        private const val SKILL = 3L
        private const val STEP = -0x61c8864680b583ebL // 0x9E3779B97F4A7C15

        /** Reals in -8 .. 8, or so many whole numbers. */
        fun logits(seed: Long, size: Int, levels: Int): FloatArray = FloatArray(size) {
            val bits = mix(seed + STEP * (it + 1)) ushr 40 // 24 of them
            if (levels > 0) (bits % levels).toFloat() else bits.toFloat() / (1 shl 20) - 8
        }

        private fun hash(tokens: List<Int>, what: Long): Long =
            tokens.fold(what) { state, token -> mix(state + STEP * (token + 1)) }

        /** Steele, Lea and Flood's splitmix64. */
        private fun mix(start: Long): Long {
            var z = start
            z = (z xor (z ushr 30)) * -0x40a7b892e31b1a47L // 0xBF58476D1CE4E5B9
            z = (z xor (z ushr 27)) * -0x6b2fb644ecceee15L // 0x94D049BB133111EB
            return z xor (z ushr 31)
        }
    }
}
