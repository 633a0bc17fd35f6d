/** Replay the recorded original on the device; runtime_py/check/replay.py says why each part is there. */
package dev.gemmaexport.loop

import kotlin.math.abs

/** Generated tokens against tokens that should be equal. */
class Comparison(
    val numEqual: Int, // tokens before the first difference, over all prompts
    val numTokens: Int,
    val largestMargin: Double // how clear the choice was at the clearest of the first differences
) {
    val equal: Boolean get() = numEqual == numTokens
}

/** What a check found. */
class CheckReport(
    val original: Comparison, // plain decoding of the bundle against the original
    val speculative: Comparison, // speculative against plain decoding, both of the bundle
    val agreement: Double, // share of greedy tokens equal, the original's text given, ties left out
    val numTies: Int, // tokens that differ where float32's rounding decides between two
    val logitError: Double, // largest difference, relative to the original's largest logit
    val acceptance: List<Double>, // by draft position, on the original's text
    val originalAcceptance: List<Double>,
    val draftLength: Int,
    val failures: List<String>
) {
    val passed: Boolean get() = failures.isEmpty()
}

/**
 * Replay a reference on a loaded backend.
 *
 * @param progress called with the number of prompts done.
 */
fun runCheck(
    session: Session,
    backend: Backend,
    reference: Reference,
    tolerances: Tolerances,
    progress: (Int) -> Unit = {}
): CheckReport {
    val draftLength = if (backend.hasDrafter) reference.draftLength else 0
    val replay = CheckReplay(backend, reference)
    val plain = ArrayList<List<Int>>()
    val fast = ArrayList<List<Int>>()
    val drafts = ArrayList<List<List<Int>>>()
    for ((index, promptIds) in reference.promptIds.withIndex()) {
        val stops = Stops(reference.numTokens)
        for ((texts, length) in listOf(plain to 0, fast to draftLength)) {
            session.clear() // each replay computes its own rows
            val steps = session.generate(promptIds, GREEDY, stops, length)
            texts.add(steps.flatMap { it.tokenIds.asSequence() }.toList())
        }
        session.clear() // the walk writes over the session's rows
        val hiddens = replay.walk(index)
        if (draftLength > 0) drafts.add(replay.propose(index, hiddens))
        progress(index + 1)
    }
    val margin = { prompt: Int, token: Int -> replay.margin(prompt, plain[prompt].take(token)) }
    val report = CheckReport(
        original = compare(plain, reference.greedyIds) { prompt, token ->
            reference.probeLogits[prompt][token].let { (it[0] - it[1]).toDouble() }
        },
        speculative = compare(fast, plain, margin),
        agreement = replay.agreement,
        numTies = replay.numTies,
        logitError = (replay.maxError / reference.logitScale),
        acceptance = if (draftLength > 0) acceptance(drafts, reference.greedyIds) else emptyList(),
        originalAcceptance = acceptance(reference.draftIds, reference.greedyIds),
        draftLength = draftLength,
        failures = emptyList()
    )
    return judged(report, tolerances, reference.logitScale.toDouble())
}

/** Walks the target along the original's text, and along its own, for margins. */
private class CheckReplay(private val backend: Backend, private val reference: Reference) {
    var maxError = 0.0
    var numAgreed = 0
    var numTies = 0

    val agreement: Double
        get() = numAgreed.toDouble() / maxOf(1, reference.greedyIds.size * reference.numTokens - numTies)

    /** Compare the logits along a prompt; the hidden states of its M positions. */
    fun walk(index: Int): List<FloatArray> {
        val promptIds = reference.promptIds[index]
        val text = promptIds + reference.greedyIds[index]
        val start = promptIds.size - 1
        if (start > 0) backend.prefill(text.subList(0, start), 0)
        val hiddens = ArrayList<FloatArray>()
        var position = start
        while (position < text.size - 1) {
            val room = minOf(text.size - 1, backend.cacheLength) - position
            val width = backend.verifyWidths.last { it <= room }
            val verified = backend.verify(text.subList(position, position + width), position)
            for (row in 0 until width) compare(verified.logits[row], index, position + row - start)
            verified.hiddens.mapTo(hiddens) { it.copyOf() }
            position += width
        }
        return hiddens
    }

    private fun compare(logits: FloatArray, index: Int, token: Int) {
        val wanted = reference.probeLogits[index][token]
        for ((probe, id) in reference.probeIds[index][token].withIndex()) {
            val error = abs(logits[id] - wanted[probe]).toDouble()
            // Not-a-number must not hide behind a comparison that is false.
            maxError = maxOf(maxError, if (error.isNaN()) Double.POSITIVE_INFINITY else error)
        }
        val chosen = argmax(logits)
        if (chosen == reference.greedyIds[index][token]) {
            numAgreed++
        } else if (behind(index, token, chosen) <= ROUNDING_TIE * reference.logitScale) {
            numTies++
        }
    }

    /** How far a token's logit was below the chosen one's; infinite if it was not kept. */
    private fun behind(index: Int, token: Int, id: Int): Double {
        val kept = reference.probeIds[index][token].indexOf(id)
        val logits = reference.probeLogits[index][token]
        return if (kept < 0) Double.POSITIVE_INFINITY else (logits[0] - logits[kept]).toDouble()
    }

    /** [S, K] what the drafter proposes after each of the original's tokens. */
    fun propose(index: Int, hiddens: List<FloatArray>): List<List<Int>> =
        reference.draftIds[index].indices.map { token ->
            var last = reference.greedyIds[index][token]
            var hidden = hiddens[token]
            List(reference.draftLength) {
                val drafted = backend.draft(last, hidden, reference.promptIds[index].size + token)
                hidden = drafted.hidden
                last = argmax(drafted.logits)
                last
            }
        }

    /** How far the best logit is above the next after these tokens of a prompt. */
    fun margin(index: Int, tokenIds: List<Int>): Double {
        val text = reference.promptIds[index] + tokenIds
        if (text.size > 1) backend.prefill(text.dropLast(1), 0)
        val logits = backend.verify(text.takeLast(1), text.size - 1).logits[0]
        val (first, second) = logits.sortedDescending()
        return (first - second).toDouble()
    }
}

private fun compare(
    found: List<List<Int>>,
    wanted: List<List<Int>>,
    margin: (Int, Int) -> Double
): Comparison {
    var numEqual = 0
    var largest = 0.0
    for (prompt in found.indices) {
        val token = found[prompt].indices.firstOrNull { found[prompt][it] != wanted[prompt][it] }
        numEqual += token ?: found[prompt].size
        if (token != null) largest = maxOf(largest, margin(prompt, token))
    }
    return Comparison(numEqual, found.map { it.size }.sum(), largest)
}

/** How often draft j and all before it equal the greedy text. */
internal fun acceptance(draftIds: List<List<List<Int>>>, greedyIds: List<List<Int>>): List<Double> {
    val length = draftIds.firstOrNull()?.firstOrNull()?.size ?: return emptyList()
    val numRight = IntArray(length)
    for ((prompt, rounds) in draftIds.withIndex()) {
        for ((token, drafts) in rounds.withIndex()) {
            for (j in drafts.indices) {
                if (drafts[j] != greedyIds[prompt][token + 1 + j]) break
                numRight[j]++
            }
        }
    }
    return numRight.map { it.toDouble() / draftIds.map { rounds -> rounds.size }.sum() }
}

private fun judged(report: CheckReport, tolerances: Tolerances, logitScale: Double): CheckReport {
    val failures = ArrayList<String>()
    // Two widths of one graph may round differently, so a near tie may fall either way.
    val tie = minOf(tolerances.maxLogitError, MAX_TIE) * logitScale
    // Written so that not-a-number fails: every comparison with it is false.
    if (!(report.logitError <= tolerances.maxLogitError)) {
        failures.add("logits differ from the original's by ${short(report.logitError)} of their scale, allowed ${short(tolerances.maxLogitError)}")
    }
    if (!(report.agreement >= tolerances.minAgreement)) {
        failures.add("only ${percent(report.agreement)} of tokens agree with the original, needed ${percent(tolerances.minAgreement)}")
    }
    if (!(report.speculative.largestMargin <= tie)) {
        failures.add("speculative output differs from plain decoding where the margin is ${short(report.speculative.largestMargin)}, so the graphs disagree")
    }
    if (tolerances.maxLogitError <= MAX_TIE && !(report.original.largestMargin <= 2 * tie)) {
        failures.add("plain decoding leaves the original's text where the margin is ${short(report.original.largestMargin)}")
    }
    val wanted = tolerances.minAcceptanceRatio * (report.originalAcceptance.firstOrNull() ?: 0.0)
    if (report.draftLength > 0 && report.acceptance[0] < wanted) {
        failures.add("the drafter is broken or mis-wired: ${percent(report.acceptance[0])} of first drafts accepted, needed ${percent(wanted)}")
    }
    return CheckReport(
        report.original, report.speculative, report.agreement, report.numTies, report.logitError,
        report.acceptance, report.originalAcceptance, report.draftLength, failures
    )
}

private fun short(value: Double) = String.format(java.util.Locale.ROOT, "%.2g", value)

private fun percent(value: Double) = String.format(java.util.Locale.ROOT, "%.1f%%", 100 * value)

// Relative to the largest logit: a smaller margin between two tokens is a tie that rounding decides.
private const val MAX_TIE = 1e-3

// The same, of float32 alone: runtime_py/check/replay.py says why this many roundings.
private const val ROUNDING_TIE = 1.0 / (1 shl 17)
