/**
 * Sampling: which token follows, as a pure function of logits, seed and position.
 *
 * The same as runtime_py/decoding/sampling.py, whose header says why it is as it is: token t is
 * argmax(logits / temperature + gumbel(seed, position, token id)) over the tokens that survive top-k
 * and top-p. All arithmetic is that of the Python side, operation by operation, in double. Logarithm
 * and exponential are StrictMath's: the same bits on every JVM and every phone, and within two units
 * in the last place of NumPy's, so that the two sides differ only where two tokens lie that close.
 */
package dev.gemmaexport.loop

/** Bad input; the message is one line: what, where, found, needed, next step. */
class RunException(message: String) : Exception(message)

/** How a token is chosen from logits; temperature 0 is greedy and ignores the rest. */
data class SamplingParams(
    val temperature: Double = 0.0, // 0 is greedy
    val topK: Int = 0, // tokens kept, 0 keeps all
    val topP: Double = 1.0, // probability mass kept, 1 keeps all
    val seed: Long = 0 // its 64 bits, unsigned
) {
    init {
        if (!(temperature >= 0 && temperature < Double.POSITIVE_INFINITY)) {
            throw RunException("temperature is $temperature; it must be a number from 0 up")
        }
        if (topK < 0) throw RunException("top-k is $topK; it must be 0 (off) or more")
        if (!(topP > 0 && topP <= 1)) {
            throw RunException("top-p is $topP; it must be above 0 and at most 1 (off)")
        }
    }

    val greedy: Boolean get() = temperature < GREEDY_BELOW
}

val GREEDY = SamplingParams()

/** Token ids, ascending, with their logits / temperature. */
class Survivors(val tokenIds: IntArray, val scaled: DoubleArray)

/**
 * The token that follows; the lowest id wins a tie.
 *
 * @param logits [V] of the step.
 * @param position index, from the start of the sequence, of the token to be chosen.
 */
fun choose(logits: FloatArray, sampling: SamplingParams, position: Int): Int {
    if (sampling.greedy) return argmax(logits)
    val survivors = survivingTokens(logits, sampling)
    val ids = survivors.tokenIds
    val scaled = survivors.scaled
    // Noise is expensive: the tokens that no noise could lift above the likeliest one go without.
    val top = argmax(scaled)
    val reached = scaled[top] + gumbel(sampling.seed, position, ids[top])
    var best = -1
    var bestSum = 0.0
    for (i in ids.indices) {
        if (scaled[i] < reached - MAX_GUMBEL) continue
        val sum = scaled[i] + gumbel(sampling.seed, position, ids[i])
        if (best < 0 || sum > bestSum) {
            best = i
            bestSum = sum
        }
    }
    return ids[if (best < 0) top else best]
}

/** Index of the largest value, the first of equals; the first NaN counts as the largest. */
fun argmax(values: FloatArray): Int {
    var best = 0
    for (i in values.indices) {
        if (values[i].isNaN()) return i
        if (values[i] > values[best]) best = i
    }
    return best
}

private fun argmax(values: DoubleArray): Int {
    var best = 0
    for (i in values.indices) if (values[i] > values[best]) best = i
    return best
}

/**
 * The tokens left by top-k, then top-p.
 *
 * Top-p keeps the most probable tokens until their mass reaches topP, the crossing one included.
 * Equal logits are ranked by token id, so the same logits always keep the same tokens.
 */
fun survivingTokens(logits: FloatArray, sampling: SamplingParams): Survivors {
    val all = sampling.topK == 0 || sampling.topK >= logits.size
    val ids =
        if (all) IntArray(logits.size) { it }
        else largest(logits.size, sampling.topK) { logits[it].toDouble() }
    val scaled = DoubleArray(ids.size) { logits[ids[it]].toDouble() / sampling.temperature }
    if (sampling.topP >= 1) return Survivors(ids, scaled)
    val kept = likeliest(scaled, sampling.topP)
    return Survivors(IntArray(kept.size) { ids[kept[it]] }, DoubleArray(kept.size) { scaled[kept[it]] })
}

/** Ascending indices of the k largest values; among equals of the last, the lowest indices. */
private inline fun largest(size: Int, k: Int, value: (Int) -> Double): IntArray {
    val heap = WorstFirst(k)
    for (i in 0 until size) heap.offer(i, value(i))
    return heap.indices.sortedArray()
}

/** Ascending indices of the smallest set of likeliest tokens whose mass reaches topP. */
private fun likeliest(scaled: DoubleArray, topP: Double): IntArray {
    val most = scaled[argmax(scaled)]
    val weights = DoubleArray(scaled.size) { StrictMath.exp(scaled[it] - most) }
    val wanted = topP * pairwiseSum(weights)
    var candidates = IntArray(scaled.size) { it }
    if (scaled.size > NUM_RANKED) {
        // Sorting a whole vocabulary is slow; equals of the last one stay in, so that ranking the
        // few is ranking all.
        var threshold = Double.POSITIVE_INFINITY
        for (i in largest(scaled.size, NUM_RANKED) { scaled[it] }) threshold = minOf(threshold, scaled[i])
        val few = candidates.filter { scaled[it] >= threshold }.toIntArray()
        if (pairwiseSum(DoubleArray(few.size) { weights[few[it]] }) >= wanted) candidates = few
    }
    val ranked = candidates.sortedWith(Comparator { a, b -> scaled[b].compareTo(scaled[a]) }) // stable
    var mass = 0.0
    val kept = ranked.filter {
        mass += weights[it]
        mass - weights[it] < wanted
    }
    return kept.toIntArray().sortedArray()
}

/** NumPy's order of summation, so that the sum has its very bits. */
private fun pairwiseSum(values: DoubleArray, start: Int = 0, size: Int = values.size): Double {
    if (size < 8) {
        var sum = 0.0
        for (i in start until start + size) sum += values[i]
        return sum
    }
    if (size > 128) {
        val half = size / 2 - size / 2 % 8
        return pairwiseSum(values, start, half) + pairwiseSum(values, start + half, size - half)
    }
    val parts = DoubleArray(8) { values[start + it] }
    val whole = size - size % 8
    for (i in 8 until whole) parts[i % 8] += values[start + i]
    var sum = (parts[0] + parts[1] + (parts[2] + parts[3])) + (parts[4] + parts[5] + (parts[6] + parts[7]))
    for (i in whole until size) sum += values[start + i]
    return sum
}

/** The k largest values offered, in a heap with the worst of them on top. */
private class WorstFirst(k: Int) {
    private val kept = IntArray(k)
    private val values = DoubleArray(k)
    private var size = 0

    val indices: IntArray get() = kept.copyOf(size)

    /** Offered by ascending index, so that an equal value comes too late. */
    fun offer(index: Int, value: Double) {
        if (size < kept.size) {
            siftUp(size++, index, value)
        } else if (value > values[0]) {
            siftDown(index, value)
        }
    }

    private fun siftUp(start: Int, index: Int, value: Double) {
        var slot = start
        while (slot > 0) {
            val parent = (slot - 1) / 2
            if (!worse(index, value, parent)) break
            move(parent, slot)
            slot = parent
        }
        kept[slot] = index
        values[slot] = value
    }

    private fun siftDown(index: Int, value: Double) {
        var slot = 0
        while (true) {
            var child = 2 * slot + 1
            if (child >= size) break
            if (child + 1 < size && worse(kept[child + 1], values[child + 1], child)) child++
            if (worse(index, value, child)) break
            move(child, slot)
            slot = child
        }
        kept[slot] = index
        values[slot] = value
    }

    private fun worse(index: Int, value: Double, slot: Int): Boolean =
        value < values[slot] || (value == values[slot] && index > kept[slot])

    private fun move(from: Int, to: Int) {
        kept[to] = kept[from]
        values[to] = values[from]
    }
}

/** Standard Gumbel noise of one token at one position, between -3.61 and 36.74. */
fun gumbel(seed: Long, position: Int, tokenId: Int): Double {
    val words = philox(longArrayOf(tokenId.toLong(), position.toLong() and LOW, 0, 0), seed and LOW, seed ushr 32)
    // 52 random bits and a half: never 0, never 1, exact in a double.
    val bits = (words[0] shl 20) or (words[1] ushr 12)
    val uniform = (bits.toDouble() + 0.5) * TWO_TO_MINUS_52
    return -StrictMath.log(-StrictMath.log(uniform))
}

/** Philox4x32-10: four 32-bit words for a counter of four, each held in a Long. */
fun philox(counter: LongArray, key0: Long, key1: Long): LongArray {
    var c0 = counter[0]
    var c1 = counter[1]
    var c2 = counter[2]
    var c3 = counter[3]
    for (round in 0 until ROUNDS) {
        val product0 = c0 * MULTIPLIER_0 // wraps, and holds its 64 bits
        val product1 = c2 * MULTIPLIER_1
        val next0 = (product1 ushr 32) xor c1 xor ((key0 + round * KEY_STEP_0) and LOW)
        val next2 = (product0 ushr 32) xor c3 xor ((key1 + round * KEY_STEP_1) and LOW)
        c1 = product1 and LOW
        c3 = product0 and LOW
        c0 = next0
        c2 = next2
    }
    return longArrayOf(c0, c1, c2, c3)
}

private const val MULTIPLIER_0 = 0xD2511F53L
private const val MULTIPLIER_1 = 0xCD9E8D57L
private const val KEY_STEP_0 = 0x9E3779B9L
private const val KEY_STEP_1 = 0xBB67AE85L
private const val ROUNDS = 10
private const val LOW = 0xFFFFFFFFL
private const val TWO_TO_MINUS_52 = 1.0 / (1L shl 52)
private const val GREEDY_BELOW = 1e-200 // a logit divided by a lower temperature may overflow
private const val MAX_GUMBEL = 36.75 // just above the largest noise there is
private const val NUM_RANKED = 4096 // tokens sorted for top-p, unless they do not hold enough mass
