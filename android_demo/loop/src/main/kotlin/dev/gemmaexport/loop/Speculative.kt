/**
 * The speculative loop, once, for every backend.
 *
 * prefill -> repeat { draft K tokens -> verify K + 1 in one call -> accept -> emit }.
 */
package dev.gemmaexport.loop

import java.util.Collections
import java.util.WeakHashMap

/** Backend -> the generation whose rows it holds: the one begun last, of whatever session. */
private val holders: MutableMap<Backend, Any> = Collections.synchronizedMap(WeakHashMap())

/** When generation ends; whatever comes first, and never one token later. */
class Stops(
    val maxNewTokens: Int,
    val tokenIds: Set<Int> = emptySet() // the stop token itself is emitted, and is the last
) {
    init {
        if (maxNewTokens < 1) {
            throw RunException("max-new-tokens is $maxNewTokens; it must be 1 or more")
        }
    }
}

/** What one target call emitted. */
data class Step(
    val tokenIds: List<Int>,
    val numDrafted: Int,
    val numAccepted: Int // before a stop cut the step short
)

/**
 * One sequence over one backend's KV buffer.
 *
 * The rows 0 .. kvLength - 1 hold `committed`; a new prompt that begins with the same tokens
 * continues from there, so a chat does not prefill its history again, unless another session has
 * used the backend since.
 */
class Session(
    private val backend: Backend,
    contextLength: Int,
    private val clock: () -> Double = { System.nanoTime() * 1e-9 } // seconds
) {
    private val contextLength = minOf(contextLength, backend.cacheLength)
    private val committed = ArrayList<Int>()
    private var newest: Any? = null // the generation begun last

    val kvLength: Int get() = committed.size

    /** Forget what the rows hold; the next prompt is computed from its start. */
    fun clear() = committed.clear()

    /** What the widest graph can verify. */
    val longestDraft: Int get() = if (backend.hasDrafter) backend.verifyWidths.last() - 1 else 0

    /** As below, with the same number of drafts in every round; 0 is plain decoding. */
    fun generate(promptIds: List<Int>, sampling: SamplingParams, stops: Stops, draftLength: Int): Sequence<Step> {
        check(promptIds)
        if (draftLength !in 0..longestDraft) {
            throw RunException("draft length is $draftLength; this bundle allows 0 .. $longestDraft")
        }
        return generate(promptIds, sampling, stops, FixedDraftLength(draftLength))
    }

    /**
     * Emit the tokens that follow a prompt, a step at a time, as the sequence is iterated. The first
     * step takes the backend over from what was generated on it before, which cannot go on.
     *
     * @param promptIds the whole sequence so far, at least one token.
     * @param draftLength decides before each round how many tokens the drafter proposes. The tokens
     *     emitted are the same whatever it says.
     */
    fun generate(
        promptIds: List<Int>,
        sampling: SamplingParams,
        stops: Stops,
        draftLength: DraftLength
    ): Sequence<Step> {
        check(promptIds)
        return rounds(promptIds, sampling, stops, draftLength).constrainOnce()
    }

    private fun check(promptIds: List<Int>) {
        if (promptIds.isEmpty()) throw RunException("the prompt is empty; it needs at least one token")
        if (promptIds.size >= contextLength) {
            throw RunException(
                "the prompt has ${promptIds.size} tokens, the context holds $contextLength with " +
                    "the answer; shorten the prompt or export with a larger --context"
            )
        }
        if (promptIds.any { it !in 0 until backend.vocabSize }) {
            throw RunException("the prompt has a token id outside 0 .. ${backend.vocabSize - 1}")
        }
    }

    private fun rounds(
        promptIds: List<Int>,
        sampling: SamplingParams,
        stops: Stops,
        draftLength: DraftLength
    ): Sequence<Step> = sequence {
        var last = promptIds.last()
        val holder = takeOver()
        prefill(promptIds.dropLast(1))
        var hidden: FloatArray? = null // of the position that produced `last`
        var remaining = minOf(stops.maxNewTokens, contextLength - promptIds.size)
        while (remaining > 0) {
            if (holders[backend] !== holder) {
                throw RunException(
                    "this answer cannot go on: another one has begun on the same backend and " +
                        "written over its rows; generate anew, with what was said as part of the prompt"
                )
            }
            val begun = clock()
            val planned = draftLength.nextRound()
            val numDrafts = minOf(planned.numDrafts, remaining - 1, widestFit() - 1)
            val proposed = hidden?.let { draft(last, it, sampling, numDrafts) } ?: emptyList()
            val drafts = if (planned.verified) proposed else emptyList()
            val drafted = clock()
            val verified = backend.verify(listOf(last) + drafts, kvLength)
            val accepted = accept(drafts, verified.logits, sampling, kvLength + 1)
            hidden = verified.hiddens[accepted.numAccepted].copyOf()
            val numRight = if (planned.verified) accepted.numAccepted else numEqual(proposed, accepted)
            draftLength.observe(
                Outcome(proposed.size, numRight, drafted - begun, clock() - drafted, 1 + drafts.size)
            )
            val kept = drafts.take(accepted.numAccepted)
            committed.add(last)
            committed.addAll(kept)
            val emitted = untilStop(kept + accepted.bonusToken, stops.tokenIds)
            yield(Step(emitted, drafts.size, accepted.numAccepted))
            last = emitted.last()
            remaining -= emitted.size
            if (last in stops.tokenIds) return@sequence
        }
    }

    /** Of a draft that was not verified: 1 if decode chose the same. */
    private fun numEqual(proposed: List<Int>, decoded: Accepted): Int =
        if (proposed.firstOrNull() == decoded.bonusToken) 1 else 0

    /** Become the one whose rows the backend holds. */
    private fun takeOver(): Any {
        if (holders[backend] !== newest) committed.clear() // another session wrote over them
        return Any().also {
            newest = it
            holders[backend] = it
        }
    }

    private fun prefill(tokenIds: List<Int>) {
        var numShared = 0
        while (numShared < minOf(committed.size, tokenIds.size) && committed[numShared] == tokenIds[numShared]) {
            numShared++
        }
        // Forget first: an interrupted prefill must not leave rows that claim to be committed.
        committed.subList(numShared, committed.size).clear()
        if (tokenIds.size > numShared) {
            val added = tokenIds.subList(numShared, tokenIds.size)
            backend.prefill(added, numShared)
            committed.addAll(added)
        }
    }

    /** The widest target call whose rows, padding included, fit the KV buffer. */
    private fun widestFit(): Int = backend.verifyWidths.last { it <= backend.cacheLength - kvLength }

    private fun draft(first: Int, hidden: FloatArray, sampling: SamplingParams, numDrafts: Int): List<Int> {
        val drafts = ArrayList<Int>(maxOf(numDrafts, 0))
        var last = first
        var state = hidden
        while (drafts.size < numDrafts) {
            val drafted = backend.draft(last, state, kvLength)
            state = drafted.hidden
            last = choose(drafted.logits, sampling, kvLength + 1 + drafts.size)
            drafts.add(last)
        }
        return drafts
    }
}

private fun untilStop(tokenIds: List<Int>, stopIds: Set<Int>): List<Int> {
    val stop = tokenIds.indexOfFirst { it in stopIds }
    return if (stop < 0) tokenIds else tokenIds.subList(0, stop + 1)
}
