package dev.gemmaexport.loop

/** One turn of a conversation. */
class Turn(val fromUser: Boolean, val text: String)

/**
 * The text of a conversation with the model's next turn opened: plain turns as Gemma 4's templates
 * write them. (What else a template can do, tools for example, is not here.)
 */
fun renderChat(turns: List<Turn>, bos: String): String {
    val spoken = turns.map { "<|turn>${if (it.fromUser) "user" else "model"}\n${it.text.trim()}<turn|>\n" }
    return bos + spoken.joinToString("") + "<|turn>model\n"
}
