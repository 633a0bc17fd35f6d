package dev.gemmaexport.app.engine

import com.google.ai.edge.litertlm.Backend
import com.google.ai.edge.litertlm.Conversation
import com.google.ai.edge.litertlm.ConversationConfig
import com.google.ai.edge.litertlm.EngineConfig
import com.google.ai.edge.litertlm.ExperimentalApi
import com.google.ai.edge.litertlm.ExperimentalFlags
import com.google.ai.edge.litertlm.Message
import com.google.ai.edge.litertlm.MessageCallback
import com.google.ai.edge.litertlm.SamplerConfig
import dev.gemmaexport.app.Figures
import dev.gemmaexport.app.Mtp
import dev.gemmaexport.app.Settings
import dev.gemmaexport.loop.Manifest
import dev.gemmaexport.loop.RunException
import dev.gemmaexport.loop.Turn
import dev.gemmaexport.loop.bundleFile
import dev.gemmaexport.loop.litertEntry
import java.io.File
import java.util.concurrent.CountDownLatch
import com.google.ai.edge.litertlm.Engine as OfficialEngine

/**
 * Google's LiteRT-LM on the bundle's .litertlm as it is, to compare with.
 *
 * It has no auto, says nothing of single rounds, and with MTP on it samples the first token only.
 */
@OptIn(ExperimentalApi::class)
class LiteRtLmEngine(bundle: File, manifest: Manifest, scratch: File, mtp: Mtp) : Engine {
    private val engine: OfficialEngine

    init {
        val entry = litertEntry(bundle, manifest)
        // Read when an engine is made.
        ExperimentalFlags.enableBenchmark = true
        ExperimentalFlags.enableSpeculativeDecoding = mtp != Mtp.OFF
        val config = EngineConfig(
            modelPath = bundleFile(bundle, entry.model).path,
            backend = Backend.CPU(),
            cacheDir = scratch.path
        )
        engine = OfficialEngine(config).also { it.initialize() }
    }

    override fun reply(turns: List<Turn>, settings: Settings, shown: (String, Figures) -> Boolean) {
        val config = ConversationConfig(
            initialMessages = turns.dropLast(1).map { if (it.fromUser) Message.user(it.text) else Message.model(it.text) },
            samplerConfig = SamplerConfig(
                topK = if (settings.temperature == 0.0) 1 else TOP_K,
                topP = TOP_P,
                temperature = settings.temperature,
                seed = settings.seed.toInt()
            )
        )
        engine.createConversation(config).use { answer(it, turns.last().text, shown) }
    }

    private fun answer(conversation: Conversation, text: String, shown: (String, Figures) -> Boolean) {
        val done = CountDownLatch(1)
        val said = StringBuilder()
        var failure: Throwable? = null
        conversation.sendMessageAsync(
            text,
            object : MessageCallback {
                override fun onMessage(message: Message) {
                    said.append(message.toString())
                    if (!shown(said.toString(), Figures())) conversation.cancelProcess()
                }

                override fun onDone() = done.countDown()

                override fun onError(throwable: Throwable) {
                    failure = throwable
                    done.countDown()
                }
            }
        )
        done.await()
        failure?.let { if (it !is java.util.concurrent.CancellationException) throw RunException("LiteRT-LM: ${it.message}") }
        shown(said.toString(), Figures(tokensPerS = conversation.getBenchmarkInfo().lastDecodeTokensPerSecond))
    }

    override fun close() = engine.close()

    private companion object {
        const val TOP_K = 64
        const val TOP_P = 0.95
    }
}
