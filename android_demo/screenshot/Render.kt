/**
 * Draws the app's screen to a PNG with Compose's own layout, on a desktop: the composable is the
 * app's, the texts and figures are made up here.
 */
import androidx.compose.ui.ImageComposeScene
import androidx.compose.ui.unit.Density
import dev.gemmaexport.app.ChatActions
import dev.gemmaexport.app.ChatScreen
import dev.gemmaexport.app.ChatState
import dev.gemmaexport.app.CheckShown
import dev.gemmaexport.app.Figures
import dev.gemmaexport.app.Message
import dev.gemmaexport.app.RoundShown
import dev.gemmaexport.app.Settings
import java.io.File

private val SHOWN = ChatState(
    bundles = listOf("gemma4-tiny-android"),
    bundle = "gemma4-tiny-android",
    settings = Settings(temperature = 0.8, seed = 7),
    messages = listOf(
        Message(true, "What is the argparse module for?"),
        Message(
            false,
            "The argparse module makes it easy to write user-friendly command-line interfaces. " +
                "The program defines what arguments it requires, and argparse figures out how to " +
                "parse those out of sys.argv."
        ),
        Message(true, "And if a user gives a wrong one?"),
        Message(false, "It prints a usage message and an error, and the program ends with")
    ),
    figures = Figures(
        tokensPerS = 18.4,
        acceptedPerRound = 2.3,
        rounds = List(40) { if (it < 6) RoundShown(1, it % 2) else RoundShown(3 + it / 20, minOf((it * 7) % 5, 3 + it / 20)) }
    ),
    busy = true,
    check = CheckShown.Done(
        true,
        listOf("1280 of 1280 tokens: speculative = plain", "drafts accepted: 79.7 %, the original's 79.7 %")
    )
)

private object NoActions : ChatActions {
    override fun open(bundle: String) = Unit
    override fun change(settings: Settings) = Unit
    override fun send(text: String) = Unit
    override fun stop() = Unit
    override fun check() = Unit
    override fun clear() = Unit
}

fun main(arguments: Array<String>) {
    val scene = ImageComposeScene(1080, 2200, Density(2.625f)) { ChatScreen(SHOWN, NoActions) }
    scene.render(0)
    val image = scene.render(100_000_000)
    File(arguments[0]).writeBytes(image.encodeToData()!!.bytes)
    scene.close()
}
