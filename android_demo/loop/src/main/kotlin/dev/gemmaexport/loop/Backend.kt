package dev.gemmaexport.loop

/** What a target call returns: row i follows the i-th token. */
class Verified(val logits: Array<FloatArray>, val hiddens: Array<FloatArray>) // [T, V], [T, D]

/** What a drafter step returns. */
class Drafted(val logits: FloatArray, val hidden: FloatArray) // [V], [D]

/**
 * An exported target and drafter over one shared KV buffer.
 *
 * KV rows are addressed by position. Rows at or past the caller's committed length are stale and may
 * be overwritten at any time. Arrays that a method returns stay valid until the next call.
 */
interface Backend {
    val vocabSize: Int
    val hasDrafter: Boolean

    /** KV rows: no token can be processed at a position at or past it. */
    val cacheLength: Int

    /** Tokens per target call, ascending; the first is 1, the decode graph. */
    val verifyWidths: IntArray

    /** Write the KV rows position .. position + tokenIds.size - 1. */
    fun prefill(tokenIds: List<Int>, position: Int)

    /** Run the target over T tokens, T at most the widest verify graph. */
    fun verify(tokenIds: List<Int>, position: Int): Verified

    /**
     * Run one drafter step; reads the KV rows 0 .. position - 1 and writes none.
     *
     * @param hidden the target's hidden state that produced the last emitted token, or the projected
     *     one of the draft step before.
     * @param position that of the last emitted token, the same for every step of a round.
     */
    fun draft(tokenId: Int, hidden: FloatArray, position: Int): Drafted
}
