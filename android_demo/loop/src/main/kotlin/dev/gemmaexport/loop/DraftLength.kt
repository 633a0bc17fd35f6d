/**
 * How many tokens to draft in the next round: the number that pays best by measured cost.
 *
 * The twin of runtime_py/draft_length/ (policy.py, costs.py, acceptance.py), which has the reasons:
 * the same double arithmetic in the same order, so that the same outcomes lead to the same decisions.
 */
package dev.gemmaexport.loop

import kotlin.math.ceil

/** What to do next: draft, then verify the drafts; or, if not verified, decode and compare. */
data class Round(val numDrafts: Int, val verified: Boolean = true)

/** What became of a round. */
class Outcome(
    val numDrafted: Int,
    val numAccepted: Int, // of a draft that was not verified: 1 if decode chose the same
    val draftS: Double, // of all its drafts together
    val verifyS: Double,
    val numVerified: Int // tokens of the target call; 1 is decode
)

/** Decides before each round; sees what became of it, if anything did. */
interface DraftLength {
    fun nextRound(): Round
    fun observe(outcome: Outcome)
}

/** The same number in every round. */
class FixedDraftLength(numDrafts: Int) : DraftLength {
    private val round = Round(numDrafts)

    override fun nextRound() = round

    override fun observe(outcome: Outcome) = Unit
}

/** What is known of a bundle on this device; DeviceCosts.kt measures and keeps it. */
data class Known(
    val roundS: List<Double>, // by number of drafts, all verified; of 0, plain decoding
    val draftS: Double, // of one draft that is compared
    val acceptance: Double, // the share of all drafts
    val measuredAt: Double = 0.0 // seconds since 1970
)

/** The share of drafts that are accepted at each position, as the text is now. */
class Acceptance(numPositions: Int, private val prior: Double) {
    private val hits = DoubleArray(numPositions)
    private val tries = DoubleArray(numPositions)
    private var allHits = 0
    private var allTries = 0
    val shares = DoubleArray(numPositions) { prior } // a_1, a_2, …

    /** What the next use may expect: the share of all drafts of this one. */
    fun nextPrior() = (POOLED * prior + allHits) / (POOLED + allTries)

    /** Learn from one round; numTokens were emitted since the one observed before. */
    fun observe(numDrafted: Int, numAccepted: Int, numTokens: Int) {
        val keep = MEMORY / (MEMORY + numTokens)
        val numTries = minOf(numDrafted, numAccepted + 1)
        allHits += numAccepted
        allTries += numTries
        var poolHits = POOLED * prior
        var poolTries = POOLED
        for (k in shares.indices) {
            hits[k] = keep * hits[k] + (if (k < numAccepted) 1 else 0)
            tries[k] = keep * tries[k] + (if (k < numTries) 1 else 0)
            poolHits += hits[k]
            poolTries += tries[k]
        }
        val pooled = POOLED * (poolHits / poolTries)
        for (k in shares.indices) shares[k] = (hits[k] + pooled) / (tries[k] + POOLED)
    }
}

/** Seconds of a round, by its number of drafts, as they are now. */
class Costs(known: Known) {
    val roundS = known.roundS.toDoubleArray() // at level 1
    val numSamples = DoubleArray(roundS.size) { NUM_MEASURED }
    private var level = 1.0 // how slow the machine is, beside when the costs were measured
    private var last = 0 // drafts of the present row of alike rounds
    private var inRow = 0 // its length
    private var numOwn = 0 // of its first rounds, those that show their own cost
    private var shown = 0 until 0 // and whose cost it is

    operator fun get(numDrafts: Int): Double = level * roundS[numDrafts]

    fun observe(numDrafts: Int, seconds: Double) {
        if (numDrafts != last) {
            shown = if (last == 0) 1 until roundS.size else numDrafts..numDrafts
            numOwn = if (inRow >= NUM_OWN) NUM_OWN else 0
            last = numDrafts
            inRow = 0
        }
        inRow += 1
        val observed = maxOf(seconds, 1e-7) / this[numDrafts] // a clock may be coarse
        val change = minOf(maxOf(observed, 1 / MOST_CHANGE), MOST_CHANGE)
        if (inRow > numOwn) {
            level *= 1 + LEVEL_RATE * (change - 1)
            return
        }
        for (each in shown) {
            numSamples[each] = minOf(numSamples[each] + 1, MOST_SAMPLES)
            roundS[each] *= 1 + (change - 1) / numSamples[each]
        }
    }
}

/** Chooses by the rule of runtime_py/draft_length/policy.py, beginning with what is known. */
class AutoDraftLength(private val known: Known) : DraftLength {
    private val costs = Costs(known)
    private val acceptance = Acceptance(known.roundS.size - 1, known.acceptance)
    private val price = known.draftS / (PROBES * known.roundS[0]) // of a probe, in plain rounds
    private var wait = 0.0 // plain rounds until a probe is paid for
    private var hit = false // the last round was a probe, and right
    private var plainS = arrayListOf<Double>() // plain rounds not yet learnt from
    private var numUnseen = 0 // tokens since drafts were last observed
    private var numDrafting = 0 // rounds with drafts in a row
    private var next = PLAIN
    private var numPlain = 1 // before it; at first there is nothing to draft from

    fun toRemember() = known.copy(roundS = costs.roundS.toList(), acceptance = acceptance.nextPrior())

    override fun nextRound() = if (numPlain > 0) PLAIN else next

    override fun observe(outcome: Outcome) {
        if (outcome.numDrafted == 0) {
            plainS.add(outcome.verifyS)
            numPlain -= 1
            if (numPlain > 0 && plainS.size < BATCH) return
        }
        learnPlain()
        if (outcome.numDrafted > 0) learnDrafts(outcome)
        plan()
    }

    private fun learnPlain() {
        if (plainS.isEmpty()) return
        val warm = if (numDrafting > 0) plainS.drop(1) else listOf(plainS.sorted()[plainS.size / 2])
        for (seconds in warm) costs.observe(0, seconds)
        numUnseen += plainS.size
        wait = maxOf(wait - plainS.size, 0.0)
        plainS.clear()
        numDrafting = 0
        hit = false
    }

    private fun learnDrafts(outcome: Outcome) {
        val compared = outcome.numVerified == 1
        val numTokens = numUnseen + if (compared) 1 else 1 + outcome.numAccepted
        acceptance.observe(outcome.numDrafted, outcome.numAccepted, numTokens)
        numUnseen = 0
        hit = compared && outcome.numAccepted > 0
        if (compared) {
            numDrafting = 0
            wait += price
            return
        }
        if (numDrafting > 0) costs.observe(outcome.numDrafted, outcome.draftS + outcome.verifyS)
        numDrafting += 1
    }

    private fun plan() {
        var best = 0
        var speed = MARGIN
        var mayPay = false
        var tokens = 1.0
        var allBefore = 1.0
        val plainS = costs[0]
        for ((index, share) in acceptance.shares.withIndex()) {
            val length = index + 1
            allBefore *= share
            tokens += allBefore
            val plainRounds = costs[length] / plainS
            mayPay = mayPay || length + 1 > MARGIN * plainRounds
            if (tokens > speed * plainRounds) {
                best = length
                speed = tokens / plainRounds
            }
        }
        if (best > 0) {
            next = Round(best)
            wait = price
            numPlain = if (numDrafting >= REFRESH * costs.numSamples[0]) 1 + NUM_OWN else 0
        } else if (mayPay) {
            next = COMPARE
            numPlain = if (hit && wait <= CREDIT * price) 0 else ceil(wait).toInt()
        } else {
            next = PLAIN
            numPlain = BATCH
        }
    }
}

private val PLAIN = Round(0)
private val COMPARE = Round(1, verified = false)

// As in runtime_py/draft_length/, where each has its reason.
private const val MEMORY = 40.0
private const val POOLED = 2.0
private const val LEVEL_RATE = 0.3
private const val MOST_CHANGE = 1.2
private const val NUM_MEASURED = 3.0
private const val MOST_SAMPLES = 32.0
private const val NUM_OWN = 3
private const val MARGIN = 1.01
private const val PROBES = 0.01
private const val CREDIT = 12.0
private const val REFRESH = 10.0
private const val BATCH = 16
