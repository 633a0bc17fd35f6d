"""Store the tied embedding once in a .litertlm, not twice.

The embedder looks up rows of the matrix that the decoder multiplies with. A .tflite locates a
weight by its distance from the start of the .tflite, and a section of a .litertlm is a range of
bytes. So the embedder is written without its table, its section extends to the end of the
decoder's, and its weight points there. Both LiteRT-LM and gemma-run map sections in place.

Field numbers are those of schema.fbs of LiteRT and of litertlm_header_schema.fbs of LiteRT-LM.
"""

import mmap
import struct
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from runtime_py.formats.flatbuffer import Table
from runtime_py.formats.tflite import read_model, read_tensors

EMBEDDER, DECODER = "tf_lite_embedder", "tf_lite_prefill_decode"
HEADER_START = 32  # of a .litertlm; the 8 bytes before say where the header ends
COMPARED_BYTES = 1 << 24


@dataclass(frozen=True)
class TiedTable:
    """An embedder without its table, and the table's place in the decoder."""

    embedder: Path
    buffer: int  # of the embedder's flatbuffer
    decoder_offset: int  # bytes from the start of the decoder


@dataclass(frozen=True)
class _Weight:
    buffer: int
    offset: int
    size: int


def detach(embedder: Path, decoder: Path, out: Path) -> TiedTable | None:
    """Write the embedder without its table to `out`; None if the decoder has no such table."""
    with _Mapped(embedder) as rows, _Mapped(decoder) as head:
        ((name, table),) = _weights(rows.bytes).items()
        twin = _weights(head.bytes).get(name)
        if twin is None or not _equal(embedder, table, decoder, twin):
            return None
        out.write_bytes(rows.bytes[: table.offset])
        return TiedTable(out, table.buffer, twin.offset)


def attach(bundle: Path, tied: TiedTable) -> None:
    """Point the detached embedder in a finished .litertlm to the decoder's table."""
    with bundle.open("r+b") as file:
        ends = _section_fields(file.read(_header_end(file.read(HEADER_START)) - HEADER_START))
        begin, end_position = ends[EMBEDDER]
        decoder_begin, decoder_end_position = ends[DECODER]
        decoder_end = _read_number(file, decoder_end_position)
        file.seek(begin)
        model = read_model(file.read(tied.embedder.stat().st_size))
        position = begin + list(model.tables(4))[tied.buffer].position(1)
        _write_number(file, position, decoder_begin + tied.decoder_offset - begin)
        _write_number(file, end_position, decoder_end)


class _Mapped:
    """A file, mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "_Mapped":
        with self._path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes.close()


def _weights(data: Any) -> dict[tuple[str, int], _Weight]:
    """(name, type) -> the weights that lie behind the flatbuffer."""
    model = read_model(data)
    buffers = list(model.tables(4))
    found = {}
    for tensor in chain.from_iterable(read_tensors(model)):
        number = tensor.number(2, "<I")
        offset, size = buffers[number].number(1, "<Q"), buffers[number].number(2, "<Q")
        if offset:
            found[tensor.string(3), tensor.number(1, "<b")] = _Weight(number, offset, size)
    return found


def _equal(embedder: Path, table: _Weight, decoder: Path, twin: _Weight) -> bool:
    """Compare by reading: mapped pages would count as memory of this process."""
    if table.size != twin.size:
        return False
    with embedder.open("rb") as rows, decoder.open("rb") as head:
        rows.seek(table.offset)
        head.seek(twin.offset)
        for start in range(0, table.size, COMPARED_BYTES):
            length = min(COMPARED_BYTES, table.size - start)
            if rows.read(length) != head.read(length):
                return False
    return True


def _header_end(prologue: bytes) -> int:
    return int(struct.unpack_from("<Q", prologue, HEADER_START - 8)[0])


def _section_fields(header: bytes) -> dict[str, tuple[int, int]]:
    """Model type -> (first byte of its section, position in the file of the field of its end)."""
    sections = Table.root(header).table(1)
    assert sections is not None
    found = {}
    for section in sections.tables(0):
        place = section.number(1, "<Q"), HEADER_START + section.position(2)
        for item in section.tables(0):
            value = item.table(2)
            if item.string(0) == "model_type" and value is not None:
                found[value.string(0)] = place
    return found


def _read_number(file: Any, position: int) -> int:
    file.seek(position)
    return int(struct.unpack("<Q", file.read(8))[0])


def _write_number(file: Any, position: int, value: int) -> None:
    file.seek(position)
    file.write(struct.pack("<Q", value))
