/**
 * How many tokens to draft in the next round: the number that pays best by measured cost.
 *
 * runtime_py/draft_length/policy.py, acceptance.py and call_costs.py have the mathematics and the reasons.
 * This is the same double arithmetic in the same order, so that the same outcomes lead to the same
 * decisions, round by round.
 */
package dev.gemmaexport.loop

import kotlin.math.sqrt

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

/**
 * Seconds per call, as they are now.
 *
 * @param draft one draft step, as measured.
 * @param verify a target call, by the width of its graph, of which the least is 1, which is decode:
 *     tokens between two widths cost what the wider one does, padded.
 * @param first draft steps that the first of a round takes more, for it follows a target call and
 *     finds the caches full of other weights. Followed, too.
 * @param looks how many each of these stands for.
 */
class Costs(
    draft: Double,
    verify: Map<Int, Double>,
    first: Double = 0.0,
    looks: Double = NUM_MEASURED
) {
    private class Cost(var seconds: Double, var numLooks: Double) { // but for `common`
        /** The share that it may be too high by. */
        val doubt get() = DOUBT / sqrt(numLooks)

        /** How far it follows their middle: to the mean of all that were looked at. */
        fun ownRate(numCalls: Int) = numCalls / (numLooks + numCalls)
    }

    private val ofVerify = arrayListOf<Cost>() // by number of tokens
    private val ofFirst = Cost((1 + first) * draft, looks)
    private val ofLater = Cost(draft, looks)
    private var common = 1.0
    private var known = 0.0 // how well decode's cost is, from just before: 0 .. 1

    init {
        for ((width, seconds) in verify.toSortedMap()) {
            val cost = Cost(seconds, looks)
            while (ofVerify.size <= width) ofVerify += cost
        }
    }

    /** All draft steps of a round, at least one. */
    fun drafts(numDrafts: Int): Double = common * (ofFirst.seconds + (numDrafts - 1) * ofLater.seconds)

    fun verify(numTokens: Int): Double = common * of(numTokens).seconds

    /** Seconds of a round with so many drafts, all verified. */
    fun round(numDrafts: Int): Double = drafts(numDrafts) + verify(numDrafts + 1)

    /** What that may be at best: of calls that were seldom looked at. */
    fun roundAtBest(numDrafts: Int): Double {
        val step = if (numDrafts > 1) ofLater else ofFirst
        return drafts(numDrafts) * (1 - step.doubt) + verify(numDrafts + 1) * (1 - of(numDrafts + 1).doubt)
    }

    /**
     * Of several the middle counts, for as many as they are, as always.
     *
     * Most of a change is taken to be common to all calls: a machine that is busy or hot.
     */
    fun observeDecodes(seconds: List<Double>) {
        val change = change(seconds, verify(1), MOST)
        known = rate(DECODE_RATE, seconds.size)
        move(listOf(of(1) to change), known * change, seconds.size)
    }

    /**
     * So many drafts, at least one, and then so many tokens in one call.
     *
     * Common is what both show. One draft says nothing about later ones.
     *
     * @param cold they follow plain rounds and find the caches full of other weights.
     */
    fun observeRounds(
        numDrafts: Int,
        draftsS: List<Double>,
        numTokens: Int,
        verifyS: List<Double>,
        cold: Boolean = false
    ) {
        val numRounds = verifyS.size
        val most = if (cold) COLD else MOST
        val ofDrafts = change(draftsS, drafts(numDrafts), most)
        val ofVerified = change(verifyS, verify(numTokens), most)
        val inBoth = maxOf(minOf(ofDrafts, ofVerified), 0.0) + minOf(maxOf(ofDrafts, ofVerified), 0.0)
        val decode = of(1)
        val verified = of(numTokens)
        var rate = rate(ROUND_RATE, numRounds)
        // Where the decodes just before are well known, what changes is not as common.
        rate += known * (verified.ownRate(numRounds) - rate)
        val ofCommon = rate * inBoth
        decode.seconds *= 1 + known * (1 / (1 + ofCommon) - 1)
        known = 0.0
        val changes = arrayListOf(verified to ofVerified, ofFirst to ofDrafts)
        if (numDrafts > 1) changes += ofLater to ofDrafts
        move(changes, ofCommon, numRounds)
    }

    private fun of(numTokens: Int) = ofVerify[minOf(numTokens, ofVerify.size - 1)]

    /** What a change is beyond the common one is the cost's own. */
    private fun move(changes: List<Pair<Cost, Double>>, ofCommon: Double, numCalls: Int) {
        common *= 1 + ofCommon
        for ((cost, change) in changes) {
            cost.seconds *= 1 + cost.ownRate(numCalls) * ((1 + change) / (1 + ofCommon) - 1)
            cost.numLooks = minOf(cost.numLooks + numCalls, MOST_LOOKS)
        }
    }

    /** What so many calls move an estimate by. */
    private fun rate(ofOne: Double, numCalls: Int) = numCalls * ofOne / (1 + numCalls * ofOne)

    /** Of the middle, beyond what was expected: a share of it, or less than nothing. */
    private fun change(seconds: List<Double>, expectedS: Double, most: Double): Double {
        val middle = seconds.sorted()[seconds.size / 2]
        return minOf(maxOf(middle / expectedS, LEAST), 1 + seconds.size * (most - 1)) - 1
    }
}

/**
 * The share of drafts that are accepted, by position, as it is now.
 *
 * @param numPositions the longest draft.
 * @param prior the share at any position, as far as is known beforehand.
 */
class Acceptance(private val numPositions: Int, prior: Double) {
    private val prior = minOf(maxOf(prior, LEAST_HOPE), MOST_HOPE)
    private val stretches = arrayListOf(begin(1.0))

    var numHits = 0 // of all drafts
        private set
    var numTries = 0
        private set

    /** a_1, a_2, …: strictly between 0 and 1. */
    var byPosition = mean()
        private set

    /**
     * Position k was tried if all before it were accepted.
     *
     * @param rounds of which the drafted and the accepted tokens count.
     * @param numTokens emitted since the last time.
     */
    fun observe(rounds: List<Outcome>, numTokens: Int) {
        if (stretches.size == MAX_STRETCHES) stretches.removeAt(lightest())
        val changed = HAZARD * numTokens / (1 + HAZARD * numTokens)
        for (stretch in stretches) stretch.weight *= 1 - changed
        stretches.add(begin(changed))
        val hits = IntArray(numPositions)
        val misses = IntArray(numPositions)
        for (round in rounds) {
            val numHits = minOf(round.numAccepted, numPositions)
            for (position in 0 until numHits) hits[position] += 1
            if (numHits < minOf(round.numDrafted, numPositions)) {
                misses[numHits] += 1
                numTries += 1
            }
            this.numHits += numHits
            numTries += numHits
        }
        var total = 0.0
        for (stretch in stretches) {
            stretch.observe(hits, misses)
            total += stretch.weight
        }
        for (stretch in stretches) stretch.weight /= total
        byPosition = mean()
    }

    private fun begin(weight: Double) = Stretch(weight, numPositions, prior)

    /** But not the last: it has had one outcome to prove itself. */
    private fun lightest(): Int {
        var lightest = 0
        for (i in 0 until stretches.size - 1) {
            if (stretches[i].weight < stretches[lightest].weight) lightest = i
        }
        return lightest
    }

    private fun mean(): DoubleArray {
        val means = DoubleArray(numPositions)
        for (stretch in stretches) {
            for (position in means.indices) means[position] += stretch.weight * stretch.shares[position]
        }
        return means
    }
}

/** Text since a supposed change: what was tried there, and how likely the supposition is. */
private class Stretch(var weight: Double, numPositions: Int, private val prior: Double) {
    private val hits = DoubleArray(numPositions)
    private val tries = DoubleArray(numPositions)
    val shares = DoubleArray(numPositions) { prior } // what follows from hits and tries

    fun observe(newHits: IntArray, newMisses: IntArray) {
        for (position in shares.indices) {
            val share = shares[position]
            repeat(newHits[position]) { weight *= share }
            repeat(newMisses[position]) { weight *= 1 - share }
            hits[position] += newHits[position].toDouble()
            tries[position] += (newHits[position] + newMisses[position]).toDouble()
        }
        var allHits = PRIOR_TRIES * prior
        var allTries = PRIOR_TRIES
        for (position in shares.indices) {
            allHits += hits[position]
            allTries += tries[position]
        }
        val pooled = POOLING * (allHits / allTries)
        for (position in shares.indices) {
            shares[position] = (hits[position] + pooled) / (tries[position] + POOLING)
        }
    }
}

/**
 * Chooses among `lengths` by the rule of runtime_py/draft_length/policy.py.
 *
 * @param costs measured on this device; followed from here on.
 * @param lengths what the bundle's graphs can verify; 0 may be left out, it is always one.
 * @param prior the share of drafts that are accepted, as far as is known beforehand.
 * @param gain the time that drafts saved, as a share of the time taken, as far as is known.
 */
class AutoDraftLength(
    private val costs: Costs,
    lengths: List<Int>,
    private val prior: Double = 0.7,
    private val gain: Double = 0.0
) : DraftLength {
    private val lengths = lengths.filter { it != 0 }.distinct().sorted()
    private val estimate = Acceptance(this.lengths.lastOrNull() ?: 0, prior)
    private var tokens = expectedTokens(this.lengths, estimate.byPosition)
    private lateinit var prospect: Prospect
    private var gainedS = 0.0 // against plain decoding
    private var spentS = 0.0 // by all rounds
    private var purseS = 0.0 // what probes may lose
    private var creditS = 0.0
    private var probing = false // what was decided last is a probe
    private var cold = false // the next round with drafts to learn from follows plain ones
    private val gathered = arrayListOf<Outcome>() // rounds with drafts, to learn from
    private var gatheredS = 0.0 // what they took
    private var numMissed = 0 // of them, those of which no draft was accepted
    private val decodesS = arrayListOf<Double>() // plain rounds to look at
    private var numToLook = 0.0 // when there are so many
    private var numToProbe = 0.0 // or a probe is next, which comes with a look at them
    private var numLearnt = 0 // rounds with drafts so far, since the last probe
    private var numUnseen = 0 // tokens since acceptance was observed
    private var numDrafting = 0 // rounds with drafts in a row

    init {
        lookAnew()
        numToLook = 1.0 // the first round is plain, for there is nothing to draft from
    }

    /** The present estimate, by position. */
    val acceptance: DoubleArray get() = estimate.byPosition

    override fun nextRound(): Round {
        probing = false
        if (prospect.best.numDrafts > 0) {
            val refreshing = decodesS.isNotEmpty() || numDrafting >= prospect.refresh
            return if (refreshing) PLAIN else prospect.best
        }
        if (decodesS.size < numToProbe) return PLAIN
        probing = true
        return prospect.probe
    }

    override fun observe(outcome: Outcome) {
        if (outcome.numDrafted == 0) {
            decodesS += outcome.verifyS
            if (decodesS.size >= numToLook) {
                lookAtDecodes()
                if (gathered.isNotEmpty()) learn() else lookAnew()
            }
            return
        }
        lookAtDecodes()
        numDrafting += 1
        gathered += outcome
        gatheredS += outcome.draftS + outcome.verifyS
        if (outcome.numAccepted == 0) numMissed += 1
        val eager = probing || numLearnt < EAGER || numMissed >= MISSES
        if (eager || gatheredS >= THOUGHT_S) learn()
    }

    /** Plain rounds are put aside until then, so that they are not slowed down. */
    private fun lookAtDecodes() {
        if (decodesS.isEmpty()) return
        val afterDrafts = numDrafting > 0 && decodesS.size > 1
        costs.observeDecodes(if (afterDrafts) decodesS.drop(1) else decodesS)
        var spentS = 0.0
        for (seconds in decodesS) spentS += seconds
        earn(spentS, 0.0)
        numUnseen += decodesS.size
        numDrafting = 0
        creditS = 0.0
        decodesS.clear()
        cold = true
    }

    /** From the rounds with drafts that were put aside; a probe is one alone. */
    private fun learn() {
        followCosts()
        var numTokens = gathered.size
        for (outcome in gathered) if (outcome.numVerified > 1) numTokens += outcome.numAccepted
        estimate.observe(gathered, numUnseen + numTokens)
        tokens = expectedTokens(lengths, estimate.byPosition)
        var lostS = 0.0
        creditS = 0.0
        val plainS = costs.verify(1)
        gainedS += numTokens * plainS - gatheredS
        if (probing) {
            val last = gathered.last()
            val usualS = seconds(last)
            val expectedS = prospect.expectedLossS
            val overS = minOf(gatheredS - usualS, OVERRUN * costs.drafts(1))
            lostS = expectedS + LUCK * (usualS - numTokens * plainS - expectedS) + overS
            if (last.numAccepted == last.numDrafted) creditS = CREDIT * plainS
        }
        earn(gatheredS, lostS)
        numLearnt = if (probing) 0 else numLearnt + gathered.size
        gathered.clear()
        gatheredS = 0.0
        numMissed = 0
        numUnseen = 0
        lookAnew()
    }

    /**
     * Of the rounds that were put aside those count that are like the last, as nearly all are.
     *
     * The first one after plain rounds does not, unless it is the only one.
     */
    private fun followCosts() {
        val last = gathered.last()
        var alike = gathered.filter { it.numDrafted == last.numDrafted && it.numVerified == last.numVerified }
        val alone = alike.size == 1
        if (cold && !alone) alike = alike.drop(1)
        val draftsS = alike.map { it.draftS }
        val verifyS = alike.map { it.verifyS }
        costs.observeRounds(last.numDrafted, draftsS, last.numVerified, verifyS, cold && alone)
        cold = false
    }

    private fun lookAnew() {
        prospect = lookAhead()
        val decodeS = costs.verify(1)
        numToLook = maxOf(LOOK, LOOK_S / decodeS)
        numToProbe = Double.POSITIVE_INFINITY
        if (prospect.best.numDrafts > 0) {
            numToLook = REFRESH.toDouble()
        } else if (prospect.most >= WORTH_PROBING) {
            val missingS = prospect.leastLossS - purseS
            val earnedS = probeShare() * decodeS // by each
            numToProbe = if (missingS <= creditS) 0.0 else missingS / earnedS
        }
    }

    /** Less where there is little to gain, or the drafter was seldom right so far. */
    private fun probeShare(): Double {
        val lastsS = GAIN_LASTS * costs.verify(1)
        val gained = maxOf((lastsS * gain + gainedS) / (lastsS + spentS), 0.0)
        var hoped = minOf(HOPE_SHARE * (prospect.most - 1), MOST_PROBES)
        hoped = minOf(hoped + REINVESTED * gained, MOST_REINVESTING)
        val right = (PRIOR_LASTS * prior + estimate.numHits) / (PRIOR_LASTS + estimate.numTries)
        return maxOf(hoped * minOf(right / LIKELY, 1.0), LEAST_PROBES)
    }

    private fun earn(spentS: Double, lostS: Double) {
        this.spentS += spentS
        val earnedS = probeShare() * spentS
        purseS = minOf(purseS + earnedS - lostS, PURSE * costs.drafts(1))
    }

    /** What such a round costs. */
    private fun seconds(outcome: Outcome): Double =
        costs.drafts(outcome.numDrafted) + costs.verify(outcome.numVerified)

    private fun lookAhead(): Prospect {
        val plainS = costs.verify(1)
        var leastLossS = costs.drafts(1)
        var expectedLossS = leastLossS
        var best = 0
        var probe = COMPARE
        var speed = WORTH_DRAFTING
        var hope = 0.0
        var most = 1.0
        for ((index, length) in lengths.withIndex()) {
            val plainlyS = tokens[index] * plainS
            val roundS = costs.round(length)
            speed = maxOf(speed, plainlyS / roundS)
            val leastS = costs.roundAtBest(length)
            if (plainlyS > hope * leastS) {
                best = length
                hope = plainlyS / leastS
            }
            if (leastS - plainlyS < leastLossS) {
                probe = Round(length)
                leastLossS = maxOf(leastS - plainlyS, 0.0)
                expectedLossS = maxOf(roundS - plainlyS, 0.0)
            }
            most = maxOf(most, (length + 1) * plainS / leastS)
        }
        val refresh = minOf(maxOf(REFRESH * (speed - 1) / REFRESH_COST, LEAST_REFRESH), MOST_REFRESH)
        return Prospect(Round(if (speed > WORTH_DRAFTING) best else 0), probe, leastLossS, expectedLossS, most, refresh)
    }
}

/** What the present estimates promise. */
private class Prospect(
    val best: Round,
    val probe: Round, // the one that is expected to lose least
    val leastLossS: Double, // its, against plain decoding, by costs at best
    val expectedLossS: Double, // the same by costs as they are known, which is what counts as lost
    val most: Double, // tokens per second of a drafter that is always right, plain decoding's being 1
    val refresh: Double // rounds with drafts until a decode is worth its time
)

/** E(K) of each length. */
private fun expectedTokens(lengths: List<Int>, acceptance: DoubleArray): DoubleArray {
    val expected = DoubleArray(lengths.size)
    var tokens = 1.0
    var allBefore = 1.0
    var next = 0
    for ((index, share) in acceptance.withIndex()) {
        allBefore *= share
        tokens += allBefore
        if (index + 1 == lengths[next]) expected[next++] = tokens
    }
    return expected
}

private val PLAIN = Round(0)
private val COMPARE = Round(1, verified = false)

private const val HAZARD = 0.004 // probability that the text changes, per emitted token
private const val MAX_STRETCHES = 6
private const val LEAST_HOPE = 0.1 // a prior of 0 or 1 would have nothing to learn
private const val MOST_HOPE = 0.98
private const val PRIOR_TRIES = 4.0 // what the prior counts for
private const val PRIOR_LASTS = 20.0 // tries that it counts for beside all drafts
private const val POOLING = 10.0 // tries for which all positions together count at each
private const val LEAST_PROBES = 0.001 // share of the time
private const val MOST_PROBES = 0.01
private const val REINVESTED = 0.3 // of what drafts gained, for probes
private const val MOST_REINVESTING = 0.04 // share of the time, with the above
private const val GAIN_LASTS = 1024.0 // decode calls that a gain known beforehand counts for
private const val HOPE_SHARE = 0.05 // of what a drafter that is always right would gain, if that is less
private const val LIKELY = 0.5 // share of drafts accepted so far: the further below it, the less probes may lose
private const val LUCK = 0.25 // of what a probe loses by wrong drafts beyond what was expected, for that evens out
private const val OVERRUN = 2.0 // draft steps that a probe may take longer: no more of it counts as lost
private const val PURSE = 4.0 // draft steps for which may be saved up
private const val CREDIT = 4.0 // decode calls that probes may lose before their time, while they hit
private const val WORTH_DRAFTING = 1.02 // times plain decoding: switching costs, too, and estimates are estimates
private const val WORTH_PROBING = 1.02 // times plain decoding, by a drafter that is always right
private const val REFRESH = 2 // decodes in a row; the first is slow, for it finds the caches full of other weights
private const val MOST_REFRESH = 100.0 // rounds with drafts in a row
private const val LEAST_REFRESH = 8.0
private const val REFRESH_COST = 0.01 // share of the time that the decodes between them may cost
private const val THOUGHT_S = 0.02 // of rounds with drafts that are learnt from together
private const val MISSES = 3 // or rounds of which no draft was accepted
private const val EAGER = 4 // rounds with drafts, the first ones and after a probe, that are learnt from one by one
private const val LOOK = 32.0 // plain rounds in a row
private const val LOOK_S = 0.04 // or seconds of them, whichever are more, to be looked at together
// How fast what is common to all costs follows one decode, and one round with drafts.
private const val DECODE_RATE = 0.3
private const val ROUND_RATE = 0.7
private const val MOST_LOOKS = 67.0 // that any cost stands for: what changes is never quite certain
private const val DOUBT = 0.2 // of a cost that was looked at once: it may be so much lower; by the root of looks
private const val NUM_MEASURED = 5.0 // looks that the costs of the beginning stand for
// Times its cost: no call counts as more, nor the middle of n calls as n times as far above it.
private const val MOST = 1.2
private const val COLD = 1.05 // a call after others of another kind is slow: that it takes long says little
private const val LEAST = 0.5 // a pause makes a call slow, but nothing makes it fast
