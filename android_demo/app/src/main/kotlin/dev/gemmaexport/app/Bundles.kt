package dev.gemmaexport.app

import android.content.Context
import dev.gemmaexport.loop.MANIFEST_NAME
import dev.gemmaexport.loop.Manifest
import dev.gemmaexport.loop.checkChecksums
import java.io.File

/** Where `gemma-export --push` puts bundles; any app may read there. */
private val PUSHED = File("/data/local/tmp/gemma-export")

/** The bundles on this device, by name: pushed ones, and those in the app's own folder. */
fun findBundles(context: Context): Map<String, File> =
    listOfNotNull(PUSHED, context.getExternalFilesDir("bundles"))
        .flatMap { it.listFiles()?.toList().orEmpty() }
        .filter { File(it, MANIFEST_NAME).isFile }
        .associateBy { it.name }

/**
 * A folder for what the runtimes make of a bundle: whole graph files and repacked weights.
 *
 * The bundle's files are compared with their checksums first, once for each bundle.
 */
fun scratchFolder(context: Context, bundle: File, manifest: Manifest): File {
    val versions = File(context.cacheDir, "bundles/${bundle.name}")
    val scratch = File(versions, Integer.toHexString(manifest.files.hashCode()))
    // As large as a model each, and nobody's since the bundle was replaced.
    versions.listFiles().orEmpty().filter { it != scratch }.forEach { it.deleteRecursively() }
    val checked = File(scratch, "checked")
    if (!checked.isFile) {
        checkChecksums(bundle, manifest)
        scratch.mkdirs()
        checked.createNewFile()
    }
    return scratch
}
