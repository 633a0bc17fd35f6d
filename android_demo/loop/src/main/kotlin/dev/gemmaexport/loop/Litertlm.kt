/** The .litertlm container: which section lies where; runtime_py/formats/litertlm.py is its twin. */
package dev.gemmaexport.loop

import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** One .tflite section; offsets are bytes from the start of the file. */
data class Section(val modelType: String, val begin: Long, val end: Long)

/** The model sections of a .litertlm file; every offset is checked before it is followed. */
fun readModelSections(file: File): List<Section> {
    val header = RandomAccessFile(file, "r").use { input ->
        val prologue = ByteArray(minOf(HEADER_START.toLong(), input.length()).toInt())
        input.readFully(prologue)
        val end = headerEnd(file, prologue, input.length())
        ByteArray((end - HEADER_START).toInt()).also { input.readFully(it) }
    }
    try {
        return sections(FlatTable.root(header), HEADER_START + header.size.toLong(), file.length())
    } catch (error: IndexOutOfBoundsException) {
        throw RunException("$file: damaged .litertlm header; copy the file again")
    }
}

/** Copy a section into a file of its own, for a runtime that reads whole files only. */
fun extractSection(file: File, section: Section, into: File) {
    if (into.length() == section.end - section.begin) return
    val part = File("$into.part")
    RandomAccessFile(file, "r").use { input ->
        part.outputStream().use { output ->
            var position = section.begin
            while (position < section.end) { // one call moves less than 2 GiB, and sections are larger
                val wanted = minOf(section.end - position, MAX_COPY_BYTES)
                val copied = input.channel.transferTo(position, wanted, output.channel)
                if (copied <= 0) throw RunException("$file: cut off; copy the file again")
                position += copied
            }
        }
    }
    if (!part.renameTo(into)) throw RunException("$into cannot be written; free some space")
}

private fun headerEnd(file: File, prologue: ByteArray, fileBytes: Long): Long {
    val magic = String(prologue.copyOf(minOf(8, prologue.size)), Charsets.ISO_8859_1)
    if (magic != "LITERTLM" || prologue.size < HEADER_START) {
        throw RunException("$file: not a .litertlm file")
    }
    val numbers = ByteBuffer.wrap(prologue).order(ByteOrder.LITTLE_ENDIAN)
    if (numbers.getInt(8) != 1) {
        throw RunException("$file: .litertlm version ${numbers.getInt(8)}, this app reads 1; export again")
    }
    val end = numbers.getLong(24)
    if (end <= HEADER_START || end > minOf(fileBytes, HEADER_START + MAX_HEADER_BYTES)) {
        throw RunException("$file: header ends at byte $end of $fileBytes; copy the file again")
    }
    return end
}

private fun sections(root: FlatTable, headerEnd: Long, fileBytes: Long): List<Section> {
    val entries = root.table(1)?.tables(0) ?: throw IndexOutOfBoundsException("no section list")
    return entries.filter { it.byte(3) == TFLITE_MODEL }.map { entry ->
        val section = Section(modelType(entry), entry.long(1), entry.long(2))
        if (section.begin !in headerEnd..section.end || section.end > fileBytes) {
            throw IndexOutOfBoundsException("a section outside the file")
        }
        section
    }
}

private fun modelType(entry: FlatTable): String {
    for (item in entry.tables(0)) {
        if (item.string(0) == "model_type" && item.byte(1) == STRING_VALUE) {
            return item.table(2)?.string(0).orEmpty().toLowerCaseAscii()
        }
    }
    return ""
}

private fun String.toLowerCaseAscii() = map { if (it in 'A'..'Z') it + 32 else it }.joinToString("")

/** A flatbuffer table. ByteBuffer refuses what leads out of the buffer: IndexOutOfBoundsException. */
private class FlatTable(private val data: ByteBuffer, private val position: Int) {
    private val vtable = position - data.getInt(position)
    private val vtableBytes = data.getShort(vtable).toInt() and 0xFFFF

    fun byte(field: Int): Int = at(field)?.let { data.get(it).toInt() and 0xFF } ?: 0

    fun long(field: Int): Long = at(field)?.let { data.getLong(it) } ?: 0

    fun table(field: Int): FlatTable? = at(field)?.let { FlatTable(data, follow(it)) }

    fun tables(field: Int): List<FlatTable> {
        val start = at(field)?.let { follow(it) } ?: return emptyList()
        return (0 until length(start)).map { FlatTable(data, follow(start + 4 + 4 * it)) }
    }

    fun string(field: Int): String {
        val start = at(field)?.let { follow(it) } ?: return ""
        val bytes = ByteArray(length(start)) { data.get(start + 4 + it) }
        return bytes.toString(Charsets.UTF_8)
    }

    private fun length(start: Int): Int {
        val length = data.getInt(start)
        if (length !in 0..MAX_ENTRIES) throw IndexOutOfBoundsException("$length items")
        return length
    }

    private fun at(field: Int): Int? {
        val entry = 4 + 2 * field
        if (entry + 2 > vtableBytes) return null
        val offset = data.getShort(vtable + entry).toInt() and 0xFFFF
        return if (offset == 0) null else position + offset
    }

    private fun follow(at: Int): Int = at + data.getInt(at)

    companion object {
        fun root(bytes: ByteArray): FlatTable {
            val data = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
            return FlatTable(data, data.getInt(0))
        }
    }
}

private const val HEADER_START = 32 // magic, version, padding, end of the header
private const val MAX_HEADER_BYTES = 4L shl 20
private const val MAX_ENTRIES = 1024
private const val MAX_COPY_BYTES = 16L shl 20
private const val TFLITE_MODEL = 3
private const val STRING_VALUE = 9
