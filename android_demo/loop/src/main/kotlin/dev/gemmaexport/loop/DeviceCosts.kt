/** What calls cost on this device; runtime_py/draft_length/measure.py is its twin. */
package dev.gemmaexport.loop

/**
 * The policy that chooses by what calls cost here, for a backend with a drafter.
 *
 * Measuring writes to the KV rows: the session forgets what they held.
 *
 * @param prior the share of drafts that is accepted, as far as is known beforehand.
 * @param clock seconds.
 */
fun measuredPolicy(
    session: Session,
    backend: Backend,
    prior: Double,
    clock: () -> Double = { System.nanoTime() * 1e-9 }
): DraftLength {
    session.clear()
    val widths = backend.verifyWidths.filter { it <= backend.cacheLength }
    val verify = widths.associateWith { width -> fastest(clock) { backend.verify(List(width) { 0 }, 0) } }
    val hidden = backend.verify(listOf(0), 0).hiddens[0].copyOf()
    val draft = fastest(clock) { backend.draft(0, hidden, 1) }
    val firstDraft = fastest(clock, before = { backend.verify(listOf(0), 0) }) { backend.draft(0, hidden, 1) }
    val more = minOf(maxOf(firstDraft / draft - 1, 0.0), MOST_FIRST)
    val costs = Costs(draft, verify, more, NUM_TIMED.toDouble())
    return AutoDraftLength(costs, (1 until widths.last()).toList(), prior)
}

/** Of all drafts that the original's target judged, the share that it accepted. */
fun pooledAcceptance(reference: Reference): Double {
    if (reference.draftLength == 0) return 0.5
    val reached = acceptance(reference.draftIds, reference.greedyIds) // position k and all before it
    return reached.sum() / (1 + reached.dropLast(1).sum())
}

/** The fastest of NUM_TIMED calls, after one that warms up; what comes before each is not timed. */
private fun fastest(clock: () -> Double, before: () -> Unit = {}, call: () -> Unit): Double {
    call()
    val seconds = List(NUM_TIMED) {
        before()
        val begun = clock()
        call()
        clock() - begun
    }
    return maxOf(seconds.sorted().first(), 1e-9) // a clock may be coarse
}

private const val NUM_TIMED = 2
private const val MOST_FIRST = 2.0 // draft steps that the first of a round may take more
