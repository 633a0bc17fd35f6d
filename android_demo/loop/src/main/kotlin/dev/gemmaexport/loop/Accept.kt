package dev.gemmaexport.loop

/** How many drafts the target keeps, and the token it adds. */
class Accepted(val numAccepted: Int, val bonusToken: Int)

/**
 * Keep the longest draft prefix that equals what the target chooses by itself.
 *
 * @param draftIds K tokens proposed by the drafter.
 * @param verifyLogits [K + 1, V]; row i judges draft i, the last follows them all.
 * @param position that of the first draft; row i chooses the token at position + i.
 */
fun accept(
    draftIds: List<Int>,
    verifyLogits: Array<FloatArray>,
    sampling: SamplingParams,
    position: Int
): Accepted {
    require(verifyLogits.size == draftIds.size + 1) {
        "${draftIds.size} drafts need ${draftIds.size + 1} rows of logits"
    }
    for ((numAccepted, draftId) in draftIds.withIndex()) {
        val chosen = choose(verifyLogits[numAccepted], sampling, position + numAccepted)
        if (chosen != draftId) return Accepted(numAccepted, chosen)
    }
    return Accepted(draftIds.size, choose(verifyLogits.last(), sampling, position + draftIds.size))
}
