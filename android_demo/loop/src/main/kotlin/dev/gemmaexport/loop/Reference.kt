/** reference.npz: what the original said, recorded at export; runtime_py/bundle/reference.py owns the format. */
package dev.gemmaexport.loop

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipEntry
import java.util.zip.ZipFile

/**
 * The original model on N prompts: M greedy tokens each, stop tokens ignored.
 *
 * Row i of the last four describes the position that chose greedy token i, given the original's own
 * text before it.
 */
class Reference(
    val promptIds: List<List<Int>>, // N
    val greedyIds: List<List<Int>>, // [N, M]
    val probeIds: List<List<List<Int>>>, // [N, M, P] tokens whose logits were kept, the likeliest first
    val probeLogits: List<List<FloatArray>>, // [N, M, P]
    val logitScale: Float, // largest absolute logit seen
    val draftIds: List<List<List<Int>>> // [N, M - K, K] what the original drafter proposes after token i
) {
    val numTokens: Int get() = greedyIds.firstOrNull()?.size ?: 0
    val draftLength: Int get() = draftIds.firstOrNull()?.firstOrNull()?.size ?: 0
}

/** Read a recorded reference, every token below `vocabSize`; nothing in it can unpack to more than the file. */
fun readReference(file: File, vocabSize: Int): Reference {
    try {
        ZipFile(file).use { zip ->
            val arrays = { name: String -> array(zip, name) }
            val greedy = arrays("greedy_ids")
            val (numPrompts, numTokens) = greedy.shape
            val lengths = arrays("prompt_lengths").ints().toList()
            val all = arrays("prompt_ids").ints().toList()
            needed(lengths.size == numPrompts && lengths.all { it > 0 } && lengths.sum() == all.size, "prompts")
            val probeIds = arrays("probe_ids")
            val probeLogits = arrays("probe_logits")
            val drafts = arrays("draft_ids")
            val agree = probeIds.shape == probeLogits.shape && probeIds.shape.take(2) == greedy.shape &&
                drafts.shape.size == 3 && drafts.shape[0] == numPrompts
            needed(agree && numPrompts > 0 && numTokens > 0 && probeIds.shape[2] > 1, "shapes")
            val (_, numRounds, draftLength) = drafts.shape
            needed(draftLength == 0 || numRounds > 0 && numRounds <= numTokens - draftLength, "drafts")
            for (ids in listOf(arrays("prompt_ids"), greedy, probeIds, drafts)) {
                needed(ids.ints().all { it in 0 until vocabSize }, "a token outside 0 until $vocabSize")
            }
            val starts = lengths.scanSum()
            val logits = probeLogits.floats()
            val numProbes = probeIds.shape[2]
            val scale = arrays("logit_scale").floats().single()
            checkScale(scale, logits)
            return Reference(
                promptIds = lengths.mapIndexed { i, size -> all.subList(starts[i], starts[i] + size) },
                greedyIds = greedy.ints().toList().rows(numTokens, numPrompts),
                probeIds = probeIds.cube(),
                probeLogits = (0 until numPrompts).map { prompt ->
                    (0 until numTokens).map { token ->
                        val start = (prompt * numTokens + token) * numProbes
                        logits.copyOfRange(start, start + numProbes)
                    }
                },
                logitScale = scale,
                draftIds = drafts.cube()
            )
        }
    } catch (error: IOException) {
        throw notRecorded(file, error.message)
    } catch (error: IllegalArgumentException) {
        throw notRecorded(file, error.message)
    } catch (error: IndexOutOfBoundsException) {
        throw notRecorded(file, "sizes that do not fit each other")
    }
}

/** Everything is measured by the scale, and a wrong one would hide any error. */
private fun checkScale(scale: Float, logits: FloatArray) {
    var largest = 0f
    for (logit in logits) largest = if (Math.abs(logit) <= largest) largest else Math.abs(logit) // or NaN
    val fits = largest / 2 <= scale && scale <= MOST_UNSEEN * largest && largest < Float.POSITIVE_INFINITY
    needed(fits && scale > 0, "a scale of $scale, logits up to $largest")
}

/** What is wrong may quote the file: one line, whatever it holds. */
private fun notRecorded(file: File, reason: String?): RunException {
    val shown = reason.toString().map { if (it < ' ') '?' else it }.joinToString("").take(120)
    return RunException("$file: not a recorded reference ($shown); export again")
}

/** One .npy member, its header understood. */
private class NpyArray(val type: String, val shape: List<Int>, private val data: ByteBuffer) {
    fun ints(): IntArray {
        needed(type == "<i4", "type $type where <i4 is needed")
        return IntArray(data.remaining() / 4).also { data.asIntBuffer().get(it) }
    }

    fun floats(): FloatArray {
        needed(type == "<f4", "type $type where <f4 is needed")
        return FloatArray(data.remaining() / 4).also { data.asFloatBuffer().get(it) }
    }

    fun cube(): List<List<List<Int>>> {
        val values = ints().toList()
        return values.rows(shape[2], shape[0] * shape[1]).rows(shape[1], shape[0])
    }
}

private fun array(zip: ZipFile, name: String): NpyArray {
    val entry = requireNotNull(zip.getEntry("$name.npy")) { "no $name" }
    needed(entry.method == ZipEntry.STORED && entry.size in 0..MAX_BYTES, "$name: compressed or too large")
    val bytes = ByteArray(entry.size.toInt())
    zip.getInputStream(entry).use { java.io.DataInputStream(it).readFully(bytes) }
    val data = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
    needed(bytes.size > 10 && data.getLong(0) and MAGIC_MASK == MAGIC && bytes[6].toInt() == 1, "$name: no .npy 1.0")
    val end = 10 + (data.getShort(8).toInt() and 0xFFFF)
    needed(end <= bytes.size, "$name: cut off")
    val header = String(bytes, 10, end - 10, Charsets.ISO_8859_1)
    val found = requireNotNull(HEADER.find(header)) { "$name: header $header" }
    val shape = found.groupValues[2].split(',').map { it.trim() }.filter { it != "" }.map { it.toInt() }
    needed(shape.all { it >= 0 }, "$name: shape $shape")
    val size = shape.fold(1L) { product, length -> minOf(product * length, MAX_BYTES) }
    val itemBytes = if (found.groupValues[1] == "|u1") 1 else 4
    needed(size * itemBytes == (bytes.size - end).toLong(), "$name: shape $shape in ${bytes.size - end} bytes")
    data.position(end)
    return NpyArray(found.groupValues[1], shape, data.slice().order(ByteOrder.LITTLE_ENDIAN))
}

private fun needed(holds: Boolean, what: String) = require(holds) { what }

private fun <T> List<T>.rows(length: Int, number: Int): List<List<T>> =
    (0 until number).map { subList(it * length, (it + 1) * length) }

private fun List<Int>.scanSum(): List<Int> {
    var sum = 0
    return map { sum.also { _ -> sum += it } }
}

private const val MOST_UNSEEN = 8 // times the largest logit that was kept may the largest one of all be
private const val MAX_BYTES = 1L shl 28
private const val MAGIC = 0x59504D554E93L // 93 "NUMPY", least byte first
private const val MAGIC_MASK = (1L shl 48) - 1
private val HEADER = Regex("'descr': '([^']+)', 'fortran_order': False, 'shape': \\(([0-9, ]*)\\)")
