package dev.gemmaexport.app.engine

import dev.gemmaexport.app.Figures
import dev.gemmaexport.app.Settings
import dev.gemmaexport.loop.Turn
import java.io.Closeable

/** A bundle, loaded by one runner. Every call blocks and belongs to one thread. */
interface Engine : Closeable {
    /**
     * Answer a conversation whose last turn is the user's.
     *
     * @param shown called with the text so far and its figures; says whether to go on.
     */
    fun reply(turns: List<Turn>, settings: Settings, shown: (String, Figures) -> Boolean)
}
