/** What a bundle's rounds cost on this device; the twin of runtime_py/draft_length/measure.py. */
package dev.gemmaexport.loop

import java.io.File
import java.io.IOException
import kotlin.math.abs

/**
 * The policy that chooses by what rounds cost here, read from a file or measured and kept there.
 *
 * Measuring writes to the KV rows: the session forgets what they held.
 *
 * @param prior the share of drafts expected to be accepted, where nothing is known yet.
 * @param kept the file, of this bundle and number of threads; null: nothing is kept.
 * @param now seconds since 1970.
 * @param clock seconds.
 */
fun autoDraftLength(
    session: Session,
    backend: Backend,
    prior: Double,
    kept: File? = null,
    now: () -> Double = { System.currentTimeMillis() * 1e-3 },
    clock: () -> Double = { System.nanoTime() * 1e-9 }
): DraftLength {
    val widths = backend.verifyWidths.filter { it <= backend.cacheLength }
    if (!backend.hasDrafter || widths.last() == 1) return FixedDraftLength(0)
    val read = kept?.let { readKnown(it, widths.last()) }
    if (read != null && abs(now() - read.measuredAt) <= MAX_AGE_S) return AutoDraftLength(read)
    session.clear()
    val known = measure(backend, widths, read?.acceptance ?: prior, clock).copy(measuredAt = now())
    val policy = AutoDraftLength(known)
    kept?.let { write(known, it) }
    return policy
}

/** Keep what it learnt, for the next time the bundle is loaded here. */
fun remember(policy: DraftLength, kept: File) {
    if (policy is AutoDraftLength) write(policy.toRemember(), kept)
}

/** Of all drafts that the original's target judged, the share that it accepted. */
fun pooledAcceptance(reference: Reference): Double {
    if (reference.draftLength == 0) return 0.5
    val reached = acceptance(reference.draftIds, reference.greedyIds) // position k and all before it
    return reached.sum() / (1 + reached.dropLast(1).sum())
}

/**
 * Time calls in the order of a generation, at the beginning of the context.
 *
 * Of the widths, powers of two and the widest; others cost what lies between. The least time counts.
 */
internal fun measure(backend: Backend, widths: List<Int>, prior: Double, clock: () -> Double): Known {
    val timed = widths.filter { it and (it - 1) == 0 || it == widths.last() }
    val hidden = backend.verify(listOf(0), 0).hiddens[0].copyOf()
    val draft: () -> Unit = { backend.draft(0, hidden, 1) }
    fun verify(width: Int): () -> Unit = { backend.verify(List(width) { 0 }, 0) }
    val calls = arrayListOf(1 to verify(1), 1 to verify(1)) // by width; the first draft and later ones by these
    for (width in timed.drop(1)) {
        calls += FIRST_DRAFT to draft
        calls += LATER_DRAFT to draft
        calls += width to verify(width)
    }
    for ((_, call) in calls) call() // warms up
    val least = HashMap<Int, Double>()
    val until = clock() + ENOUGH_S
    while (least.isEmpty() || clock() < until) {
        for ((name, call) in calls) {
            val begun = clock()
            call()
            val took = maxOf(clock() - begun, LEAST_S) // a clock may be coarse
            least[name] = minOf(least[name] ?: took, took)
        }
    }
    val roundS = List(widths.last()) { numDrafts ->
        val verified = between(widths.first { it > numDrafts }, timed, least)
        if (numDrafts == 0) verified
        else verified + least.getValue(FIRST_DRAFT) + (numDrafts - 1) * least.getValue(LATER_DRAFT)
    }
    return Known(roundS, least.getValue(FIRST_DRAFT), prior)
}

/** Seconds of a width, between the timed ones beside it. */
private fun between(width: Int, timed: List<Int>, seconds: Map<Int, Double>): Double {
    val above = timed.first { it >= width }
    if (above == width) return seconds.getValue(width)
    val below = timed.last { it < width }
    val rise = (seconds.getValue(above) - seconds.getValue(below)) / (above - below)
    return seconds.getValue(below) + rise * (width - below)
}

/** Null for whatever `write` did not write: then it is measured again. */
private fun readKnown(kept: File, numLengths: Int): Known? = try {
    val values = parseJson(kept.readText()) as Map<*, *>
    val roundS = (values["round_s"] as List<*>).map { (it as Number).toDouble() }
    val (draftS, accepted, at) = listOf("draft_s", "acceptance", "measured_at").map { (values[it] as Number).toDouble() }
    val known = Known(roundS, draftS, accepted, at)
    val sane = (roundS + known.draftS).all { it in LEAST_S..MOST_S } && known.acceptance in 0.0..1.0
    if (sane && roundS.size == numLengths) known else null
} catch (_: Exception) {
    null
}

/** Beside, then renamed: never half of it. Failing costs time only. */
private fun write(known: Known, kept: File) {
    val beside = File("$kept.tmp")
    try {
        beside.writeText("""{"round_s":${known.roundS},"draft_s":${known.draftS},"acceptance":${known.acceptance},"measured_at":${known.measuredAt}}""")
        if (!beside.renameTo(kept)) beside.delete()
    } catch (_: IOException) {
        beside.delete()
    }
}

private const val FIRST_DRAFT = -1
private const val LATER_DRAFT = 0
private const val ENOUGH_S = 0.005 // of timed calls: the user waits; of a large model each is timed once
private const val MAX_AGE_S = 86400.0 // a length measured too expensive is retried the next day
private const val LEAST_S = 1e-7
private const val MOST_S = 1e3
