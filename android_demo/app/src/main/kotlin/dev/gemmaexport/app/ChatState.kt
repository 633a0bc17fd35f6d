package dev.gemmaexport.app

/** Whether the drafter drafts. */
enum class Mtp(val label: String) { OFF("Off"), ON("On"), AUTO("Auto") }

/** Who runs the graphs. */
enum class Runner(val label: String) {
    /** Our loop over LiteRT: the same text with MTP and without, K chosen by what pays. */
    LOOP("Lossless loop"),

    /** Google's own loop: no auto, and it stops sampling when it speculates. */
    LITERT_LM("LiteRT-LM")
}

/** How the next answer is made. */
data class Settings(
    val runner: Runner = Runner.LOOP,
    val mtp: Mtp = Mtp.AUTO,
    val temperature: Double = 0.0, // 0 is greedy
    val seed: Long = 0
)

data class Message(val fromUser: Boolean, val text: String)

/** One round: what was drafted and what the target kept of it. */
data class RoundShown(val numDrafted: Int, val numAccepted: Int)

/** The figures of the answer that is being made, or was made last. */
data class Figures(
    val tokensPerS: Double? = null,
    val acceptedPerRound: Double? = null, // over the rounds that drafted
    val rounds: List<RoundShown> = emptyList() // the last ones
)

/** The check against the recorded original. */
sealed class CheckShown {
    data class Running(val numDone: Int, val numPrompts: Int) : CheckShown()
    data class Done(val passed: Boolean, val lines: List<String>) : CheckShown()
}

/** All that the screen shows. */
data class ChatState(
    val bundles: List<String> = emptyList(),
    val bundle: String? = null,
    val settings: Settings = Settings(),
    val messages: List<Message> = emptyList(),
    val figures: Figures = Figures(),
    val busy: Boolean = false,
    val check: CheckShown? = null,
    val error: String? = null // one line
)

/** All that the screen can ask for. */
interface ChatActions {
    fun open(bundle: String)
    fun change(settings: Settings)
    fun send(text: String)
    fun stop()
    fun check()
    fun clear()
}
