package dev.gemmaexport.app

import android.app.Application
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope
import dev.gemmaexport.app.engine.Engine
import dev.gemmaexport.app.engine.LiteRtLmEngine
import dev.gemmaexport.app.engine.LoopEngine
import dev.gemmaexport.loop.CheckReport
import dev.gemmaexport.loop.RunException
import dev.gemmaexport.loop.Turn
import dev.gemmaexport.loop.readManifest
import java.io.File
import java.util.concurrent.CancellationException
import java.util.concurrent.Executors
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch

/** Holds the conversation; everything that computes runs on one thread of its own. */
class ChatViewModel(application: Application) : AndroidViewModel(application), ChatActions {
    private val worker = Executors.newSingleThreadExecutor().asCoroutineDispatcher()
    private val mutable = MutableStateFlow(ChatState())
    val state: StateFlow<ChatState> = mutable

    @Volatile
    private var bundles = emptyMap<String, File>()

    private var engine: Engine? = null
    private var engineIs: Any? = null // what it was made of

    @Volatile
    private var stopping = false

    /** For whenever the screen comes to the front: a bundle may have been pushed meanwhile. */
    fun lookForBundles() {
        bundles = findBundles(getApplication())
        mutable.update {
            val error = if (bundles.isEmpty()) NO_BUNDLE else it.error?.takeIf { said -> said != NO_BUNDLE }
            it.copy(bundles = bundles.keys.sorted(), error = error)
        }
        if (state.value.bundle == null) state.value.bundles.firstOrNull()?.let { open(it) }
    }

    override fun open(bundle: String) {
        if (state.value.busy) return
        mutable.update {
            it.copy(bundle = bundle, messages = emptyList(), figures = Figures(), check = null, error = null)
        }
    }

    override fun change(settings: Settings) = mutable.update { it.copy(settings = settings) }

    override fun clear() = mutable.update { it.copy(messages = emptyList(), figures = Figures(), check = null) }

    override fun stop() {
        stopping = true
    }

    override fun send(text: String) = compute {
        mutable.update { it.copy(messages = it.messages + Message(true, text) + Message(false, "")) }
        val turns = state.value.messages.dropLast(1).map { Turn(it.fromUser, it.text) }
        engine().reply(turns, state.value.settings) { said, figures ->
            mutable.update { it.copy(messages = it.messages.dropLast(1) + Message(false, said), figures = figures) }
            !stopping
        }
    }

    override fun check() {
        if (state.value.settings.runner != Runner.LOOP) {
            mutable.update { it.copy(error = NO_CHECK) }
            return
        }
        compute {
            val report = (engine() as LoopEngine).check { done, all ->
                if (stopping) throw CancellationException()
                mutable.update { it.copy(check = CheckShown.Running(done, all)) }
            }
            mutable.update { it.copy(check = CheckShown.Done(report.passed, lines(report))) }
        }
    }

    override fun onCleared() {
        stopping = true
        worker.executor.execute { engine?.close() }
        worker.close()
    }

    private fun compute(work: () -> Unit) {
        if (state.value.busy || state.value.bundle == null) return
        stopping = false
        mutable.update { it.copy(busy = true, error = null) }
        viewModelScope.launch(worker) {
            val error = failure(work)
            mutable.update {
                // Neither an answer that never began nor a check that never ended stays on the screen.
                val messages = it.messages.dropLastWhile { last -> !last.fromUser && last.text.isEmpty() }
                it.copy(busy = false, error = error, messages = messages, check = it.check as? CheckShown.Done)
            }
        }
    }

    /** What went wrong, in one line; null if nothing did, or the user stopped it. */
    private fun failure(work: () -> Unit): String? = try {
        work()
        null
    } catch (stopped: CancellationException) {
        null
    } catch (error: RunException) {
        error.message
    } catch (error: Exception) { // LiteRT's own are no RuntimeException; and a disk may be full
        "the runtime failed: ${error.message ?: error}"
    }

    /** The engine for the present choice; the old one goes first, there is no memory for two. */
    private fun engine(): Engine {
        val name = state.value.bundle.orEmpty()
        val settings = state.value.settings
        val folder = bundles[name] ?: throw RunException("$name is not on this device any more; choose another")
        val manifest = readManifest(folder)
        // LiteRT-LM decides on MTP when it is made.
        val wanted = listOf(manifest, settings.runner, settings.mtp.takeIf { settings.runner == Runner.LITERT_LM })
        engine?.takeIf { engineIs == wanted }?.let { return it }
        engine?.close()
        engine = null
        val scratch = scratchFolder(getApplication(), folder, manifest)
        val made = when (settings.runner) {
            Runner.LOOP -> LoopEngine(folder, manifest, scratch)
            Runner.LITERT_LM -> LiteRtLmEngine(folder, manifest, scratch, settings.mtp)
        }
        engine = made
        engineIs = wanted
        return made
    }

    private companion object {
        const val NO_BUNDLE = "no bundle on this device; gemma-export --target android --size tiny --push sends one"
        const val NO_CHECK = "LiteRT-LM shows no logits to check; choose the lossless loop"

        fun lines(report: CheckReport): List<String> = listOf(
            "plain = original: ${report.original.numEqual} of ${report.original.numTokens} tokens",
            "speculative = plain: ${report.speculative.numEqual} of ${report.speculative.numTokens} tokens",
            "first drafts accepted: ${percent(report.acceptance)}, the original's ${percent(report.originalAcceptance)}"
        ) + report.failures

        fun percent(shares: List<Double>) = shares.firstOrNull()?.let { "%.1f %%".format(100 * it) } ?: "no drafter"
    }
}
