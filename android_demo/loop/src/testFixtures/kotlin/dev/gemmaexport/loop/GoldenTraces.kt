package dev.gemmaexport.loop

import java.io.File
import java.util.Base64

/** What replaying some of the golden traces gave. */
class Replay(val what: String, val numEqual: Int, val differences: List<String>) {
    val numReplayed: Int get() = numEqual + differences.size
}

/**
 * Replays tests/golden/loop-traces.json, which tests/golden_traces/record.py recorded from runtime_py.
 *
 * The JUnit tests run it on the JVM and the self-test APK on a device.
 *
 * @param tinyTokenizer the tokenizer.json of models/gemma4-tiny, for which the traces only say "tiny".
 */
class GoldenTraces(json: String, private val tinyTokenizer: String) {
    private val recorded = parseJson(json) as Map<*, *>

    fun replayAll(): List<Replay> = listOf(
        replay("traces") { trace(it) },
        replay("refusals") { refusal(it) },
        replay("decisions") { decisions(it) },
        replay("tokenizers") { tokenizer(it) },
        replay("checks") { check(it) },
        replay("survivors") { survivors(it) },
        replay("noise") { noise(it) }
    )

    private fun replay(what: String, difference: (Map<*, *>) -> String?): Replay {
        val items = recorded.list(what)
        val differences = items.mapIndexedNotNull { index, item ->
            difference(item as Map<*, *>)?.let { "$what $index: $it" }
        }
        return Replay(what, items.size - differences.size, differences)
    }

    /** Same tokens, in the same rounds. */
    private fun trace(recorded: Map<*, *>): String? {
        val backend = backend(recorded)
        val session = Session(backend, recorded.int("context_length")) { backend.seconds() }
        val policy = backend.policy()
        for (turn in recorded.list("turns")) {
            val wanted = (turn as Map<*, *>).list("steps")
            val found = steps(session, turn, policy).map { listOf(longs(it.tokenIds), it.numDrafted.toLong(), it.numAccepted.toLong()) }
            if (found != wanted) return "${recorded["name"]}: $found, recorded $wanted"
        }
        return null
    }

    private fun refusal(recorded: Map<*, *>): String? {
        val said = try {
            val backend = backend(recorded)
            steps(Session(backend, 1000), recorded["turn"] as Map<*, *>, backend.policy())
            null
        } catch (error: RunException) {
            error.message
        }
        return if (said == recorded["said"]) null else "$said, recorded ${recorded["said"]}"
    }

    /** What the draft-length policy decides before each outcome. */
    private fun decisions(recorded: Map<*, *>): String? {
        val tick = recorded["tick"] as Double
        val roundS = longs(recorded["round"]).map { it * tick }
        val policy = AutoDraftLength(Known(roundS, recorded.int("draft") * tick, recorded["acceptance"] as Double))
        for ((index, round) in recorded.list("rounds").withIndex()) {
            val (wanted, outcome) = round as List<*>
            val decided = policy.nextRound()
            val found = listOf(decided.numDrafts.toLong(), decided.verified)
            if (found != wanted) return "round $index: $found, recorded $wanted"
            val (drafted, accepted, draftTicks, verifyTicks, verified) = longs(outcome)
            policy.observe(
                Outcome(drafted.toInt(), accepted.toInt(), draftTicks * tick, verifyTicks * tick, verified.toInt())
            )
        }
        val learnt = policy.toRemember()
        val remembered = recorded["remembered"] as Map<*, *>
        val wanted = remembered.list("round_s") + remembered["acceptance"]
        val found = learnt.roundS + learnt.acceptance
        return if (found == wanted) null else "remembers $found, recorded $wanted"
    }

    /** Ids of texts, and texts of ids, as the library has them that wrote the tokenizer. */
    private fun tokenizer(recorded: Map<*, *>): String? {
        val json = recorded["json"] as String
        val tokenizer = Tokenizer(if (json == "tiny") tinyTokenizer else json)
        for (pair in recorded.list("encoded")) {
            val (text, wanted) = pair as List<*>
            val found = longs(tokenizer.encode(text as String))
            if (found != wanted) return "'$text' is $found, recorded $wanted"
        }
        for (pair in recorded.list("decoded")) {
            val (ids, wanted) = pair as List<*>
            val found = tokenizer.decode(longs(ids).map { it.toInt() })
            if (found != wanted) return "$ids is '$found', recorded '$wanted'"
        }
        val (begin, end) = longs(recorded["thought"]).map { it.toInt() }
        for (pair in recorded.list("streamed")) {
            val (chunks, wanted) = pair as List<*>
            val stream = TextStream(tokenizer, Thought(begin, end))
            val pieces = (chunks as List<*>).map { chunk -> stream.push(longs(chunk).map { it.toInt() }) }
            val found = pieces + stream.finish()
            if (found != wanted) return "$chunks streams as $found, recorded $wanted"
        }
        return null
    }

    /** What a check says of a backend, given a reference.npz. */
    private fun check(recorded: Map<*, *>): String? {
        val file = File.createTempFile("reference", ".npz")
        file.writeBytes(Base64.getDecoder().decode(recorded["reference"] as String))
        val reference = try {
            readReference(file, Int.MAX_VALUE)
        } finally {
            file.delete()
        }
        val tolerances = recorded["tolerances"] as Map<*, *>
        val backend = backend(recorded)
        val report = runCheck(
            Session(backend, 128),
            backend,
            reference,
            Tolerances(
                tolerances["max_logit_error"] as Double,
                tolerances["min_agreement"] as Double,
                tolerances["min_acceptance_ratio"] as Double
            )
        )
        val found = listOf(
            listOf(report.original.numEqual.toLong(), report.speculative.numEqual.toLong()),
            report.agreement, report.numTies.toLong(), report.acceptance, report.originalAcceptance, pooledAcceptance(reference),
            report.failures.size.toLong()
        )
        val wanted = listOf(
            "num_equal", "agreement", "num_ties", "acceptance", "original_acceptance", "pooled_acceptance",
            "num_failures"
        ).map { recorded[it] }
        val error = report.logitError - recorded["logit_error"] as Double
        return if (found == wanted && Math.abs(error) < 1e-9) null else "$found, recorded $wanted"
    }

    private fun survivors(recorded: Map<*, *>): String? {
        val logits = ScriptedBackend.logits(
            recorded["seed"] as Long, recorded.int("size"), recorded.int("levels")
        )
        val found = longs(survivingTokens(logits, sampling(recorded)).tokenIds.toList())
        val wanted = recorded.list("token_ids")
        return if (found == wanted) null else "$found, recorded $wanted"
    }

    /** Python's logarithm is another one: two units in the last place are allowed. */
    private fun noise(recorded: Map<*, *>): String? {
        val seed = unsigned(recorded["seed"])
        for ((token, wanted) in recorded.ints("token_ids").zip(recorded.list("values"))) {
            val found = gumbel(seed, recorded.int("position"), token)
            if (Math.abs(found - wanted as Double) > 2 * Math.ulp(Math.max(Math.abs(found), 1.0))) {
                return "$found, recorded $wanted"
            }
        }
        return null
    }

    private fun steps(session: Session, turn: Map<*, *>, auto: DraftLength): List<Step> {
        val stops = Stops(turn.int("max_new_tokens"), turn.ints("stop_ids").toSet())
        val prompt = turn.ints("prompt")
        val steps =
            if (turn["draft_length"] == "auto") session.generate(prompt, sampling(turn), stops, auto)
            else session.generate(prompt, sampling(turn), stops, turn.int("draft_length"))
        return steps.toList()
    }

    private fun sampling(owner: Map<*, *>): SamplingParams {
        val sampling = owner["law"] as Map<*, *>
        return SamplingParams(
            sampling["temperature"] as Double, sampling.int("top_k"), sampling["top_p"] as Double, unsigned(sampling["seed"])
        )
    }

    private fun backend(owner: Map<*, *>): ScriptedBackend {
        val backend = owner["backend"] as Map<*, *>
        return ScriptedBackend(
            backend.int("skill"),
            backend.int("vocab_size"),
            backend.int("cache_length"),
            backend.ints("verify_widths").toIntArray(),
            backend.int("levels"),
            backend.int("draft_ticks"),
            backend.ints("verify_ticks")
        )
    }
}

private fun unsigned(decimal: Any?): Long = java.lang.Long.parseUnsignedLong(decimal as String)

private fun longs(values: Any?): List<Long> = (values as List<*>).map { it as Long }

private fun longs(values: List<Int>): List<Long> = values.map { it.toLong() }

private fun Map<*, *>.list(key: String): List<*> = this[key] as List<*>

private fun Map<*, *>.int(key: String): Int = (this[key] as Long).toInt()

private fun Map<*, *>.ints(key: String): List<Int> = list(key).map { (it as Long).toInt() }
