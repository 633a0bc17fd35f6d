package dev.gemmaexport.app

import android.content.Context
import dev.gemmaexport.loop.MANIFEST_NAME
import java.io.File

/** Where `gemma-export --push` puts bundles; any app may read there. */
private val PUSHED = File("/data/local/tmp/gemma-export")

/** The bundles on this device, by name: pushed ones, and those in the app's own folder. */
fun findBundles(context: Context): Map<String, File> =
    listOfNotNull(PUSHED, context.getExternalFilesDir("bundles"))
        .flatMap { it.listFiles()?.toList().orEmpty() }
        .filter { File(it, MANIFEST_NAME).isFile }
        .associateBy { it.name }
