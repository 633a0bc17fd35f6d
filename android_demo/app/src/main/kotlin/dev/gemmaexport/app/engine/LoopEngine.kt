package dev.gemmaexport.app.engine

import dev.gemmaexport.app.Figures
import dev.gemmaexport.app.Mtp
import dev.gemmaexport.app.RoundShown
import dev.gemmaexport.app.Settings
import dev.gemmaexport.loop.CheckReport
import dev.gemmaexport.loop.DraftLength
import dev.gemmaexport.loop.FixedDraftLength
import dev.gemmaexport.loop.GraphBackend
import dev.gemmaexport.loop.Manifest
import dev.gemmaexport.loop.RunException
import dev.gemmaexport.loop.SamplingParams
import dev.gemmaexport.loop.Session
import dev.gemmaexport.loop.Step
import dev.gemmaexport.loop.Stops
import dev.gemmaexport.loop.TextStream
import dev.gemmaexport.loop.Tokenizer
import dev.gemmaexport.loop.Turn
import dev.gemmaexport.loop.autoDraftLength
import dev.gemmaexport.loop.bundleFile
import dev.gemmaexport.loop.litertEntry
import dev.gemmaexport.loop.pooledAcceptance
import dev.gemmaexport.loop.readReference
import dev.gemmaexport.loop.remember
import dev.gemmaexport.loop.renderChat
import dev.gemmaexport.loop.runCheck
import java.io.File

/** Our own loop over LiteRT's graphs: the same text with the drafter and without. */
class LoopEngine(bundle: File, private val manifest: Manifest, scratch: File) : Engine {
    private val entry = litertEntry(bundle, manifest)
    // The graphs last: whatever is refused before them leaves no native memory behind.
    private val tokenizer = Tokenizer(bundleFile(bundle, manifest.tokens.tokenizer).readText())
    private val bos = manifest.tokens.bosTokenId?.let { tokenizer.text(it) }.orEmpty()
    private val thought = tokenizer.thought(manifest.tokens.specialTokens)
    private val reference = readReference(bundleFile(bundle, manifest.reference), manifest.model.vocabSize)
    private val graphs = LiteRtGraphs(bundleFile(bundle, entry.model), scratch, numThreads())
    private val backend = GraphBackend(graphs)
    private val session = Session(backend, manifest.model.contextLength)
    private val kept = File(scratch, "costs-${manifest.files.getValue(entry.model).sha256}-${numThreads()}.json")
    private val auto: DraftLength by lazy { autoDraftLength(session, backend, pooledAcceptance(reference), kept) }

    override fun reply(turns: List<Turn>, settings: Settings, shown: (String, Figures) -> Boolean) {
        val prompt = renderChat(turns, bos)
        if (prompt.length > MAX_TOKEN_LENGTH * manifest.model.contextLength.toLong()) {
            throw RunException("the conversation is longer than the context can hold; begin a new one")
        }
        val promptIds = tokenizer.encode(prompt)
        val sampling = SamplingParams(settings.temperature, topK = TOP_K, topP = TOP_P, seed = settings.seed)
        val stops = Stops(MAX_NEW_TOKENS, manifest.tokens.stopTokenIds.toSet())
        val pieces = TextStream(tokenizer, thought)
        val steps = ArrayList<Step>()
        val text = StringBuilder()
        var begun = 0L
        for (step in session.generate(promptIds, sampling, stops, policy(settings.mtp))) {
            if (steps.isEmpty()) begun = System.nanoTime() // the prompt is done, the first token is there
            steps.add(step)
            text.append(pieces.push(step.tokenIds))
            if (!shown(text.toString(), figures(steps, (System.nanoTime() - begun) / 1e9))) return
        }
        text.append(pieces.finish())
        shown(text.toString(), figures(steps, (System.nanoTime() - begun) / 1e9))
        if (settings.mtp == Mtp.AUTO) remember(auto, kept)
    }

    /** Replay the bundle's reference; `progress` hears of the prompts done, and of how many there are. */
    fun check(progress: (Int, Int) -> Unit): CheckReport =
        runCheck(session, backend, reference, entry.tolerances) { progress(it, reference.promptIds.size) }

    override fun close() = graphs.close()

    private fun policy(mtp: Mtp): DraftLength = when {
        mtp == Mtp.OFF || !backend.hasDrafter -> FixedDraftLength(0)
        mtp == Mtp.ON -> FixedDraftLength(minOf(manifest.draftLength, session.longestDraft))
        else -> auto
    }

    private companion object {
        const val TOP_K = 64
        const val TOP_P = 0.95
        const val MAX_NEW_TOKENS = 1024
        const val MAX_ROUNDS = 40
        const val MAX_TOKEN_LENGTH = 256 // more than any token of Gemma stands for

        /** Phones have at most four fast cores. */
        fun numThreads() = minOf(4, Runtime.getRuntime().availableProcessors())

        fun figures(steps: List<Step>, seconds: Double): Figures {
            val drafting = steps.filter { it.numDrafted > 0 }
            val numDecoded = steps.drop(1).sumOf { it.tokenIds.size }
            return Figures(
                tokensPerS = if (seconds > 0 && numDecoded > 0) numDecoded / seconds else null,
                acceptedPerRound = if (drafting.isEmpty()) null else drafting.sumOf { it.numAccepted } / drafting.size.toDouble(),
                rounds = steps.takeLast(MAX_ROUNDS).map { RoundShown(it.numDrafted, it.numAccepted) }
            )
        }
    }
}
