"""Reader of the .litertlm container: which section lies where.

The file is untrusted: every offset is checked before it is followed, and whatever does not hold
is a RunError. Nothing here reads a section's content.

Source: LiteRT-LM, schema/core/litertlm_header_schema.fbs and litert_lm_builder (0.18.1).
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime_py.errors import RunError

MAGIC = b"LITERTLM"
FORMAT_VERSION = 1  # major; minor versions only add sections
_HEADER_START = 32  # magic, three uint32 of version, padding, uint64 end of the header
_MAX_HEADER_BYTES = 4 << 20
_MAX_ENTRIES = 1024  # sections, or items of one section; known files have about ten
_STRING_VALUE = 9  # tag of the string member of the item value union

DATA_TYPES = {
    1: "generic",
    3: "tflite_model",
    4: "sentencepiece_tokenizer",
    5: "llm_metadata",
    6: "hf_tokenizer_zlib",
    7: "tflite_weights",
    8: "embedding_metadata",
    9: "executor_metadata",
    10: "tts_metadata",
    11: "asr_metadata",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section; offsets are bytes from the start of the file."""

    data_type: str  # a value of DATA_TYPES, or "unknown"
    model_type: str  # "tf_lite_prefill_decode" ... for a model, else ""
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


class FlatbufferError(Exception):
    """An offset that leads out of the buffer; callers say which file and raise RunError."""


class Table:
    """One flatbuffer table, every access bounds-checked. Fields are numbered as in the schema."""

    def __init__(self, data: bytes | memoryview, position: int) -> None:
        self._data = data
        self._position = position
        self._vtable = position - self._unpack("<i", position)
        self._vtable_bytes = self._unpack("<H", self._vtable)

    @classmethod
    def root(cls, data: bytes | memoryview) -> "Table":
        return cls(data, unpack_at(data, "<I", 0))

    def number(self, field: int, code: str) -> int:
        """The scalar field of struct format `code`, 0 when absent."""
        position = self._field(field)
        return self._unpack(code, position) if position else 0

    def table(self, field: int) -> "Table | None":
        position = self._field(field)
        return Table(self._data, self._follow(position)) if position else None

    def tables(self, field: int) -> Iterator["Table"]:
        start, length = self.vector(field, item_bytes=4)
        for index in range(length):
            yield Table(self._data, self._follow(start + 4 * index))

    def string(self, field: int) -> str:
        start, length = self.vector(field, item_bytes=1)
        return bytes(self._data[start : start + length]).decode("utf-8", errors="replace")

    def vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        """(position of the first item, number of items); (0, 0) when absent."""
        position = self._field(field)
        if not position:
            return 0, 0
        start = self._follow(position)
        length = self._unpack("<I", start)
        if start + 4 + length * item_bytes > len(self._data):
            raise FlatbufferError("a vector ends past the end of its buffer")
        return start + 4, length

    def _field(self, field: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > self._vtable_bytes:
            return 0
        offset = self._unpack("<H", self._vtable + entry)
        return self._position + offset if offset else 0

    def _follow(self, position: int) -> int:
        return position + self._unpack("<I", position)

    def _unpack(self, code: str, position: int) -> int:
        return unpack_at(self._data, code, position)


def unpack_at(data: bytes | memoryview, code: str, position: int) -> int:
    """One integer of struct format `code`. Raises FlatbufferError when it is not inside `data`."""
    if position < 0 or position + struct.calcsize(code) > len(data):
        raise FlatbufferError("an offset leads out of its buffer")
    value: int = struct.unpack_from(code, data, position)[0]
    return value


def read_sections(path: Path) -> tuple[Section, ...]:
    """The sections of a .litertlm file, in file order of the header.

    Raises:
        RunError: if the file is missing, truncated, not a .litertlm, or of another major version.
    """
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prologue = file.read(_HEADER_START)
            header_end = _check_prologue(path, prologue, file_bytes)
            header = file.read(header_end - _HEADER_START)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}") from error
    try:
        return tuple(_parse_sections(header, header_end, file_bytes))
    except FlatbufferError as error:
        raise RunError(f"{path}: damaged .litertlm header: {error}; copy the file again") from error


def find_model(sections: tuple[Section, ...], model_type: str) -> Section | None:
    """The one model section of that type, or None.

    Raises:
        RunError: if there are several.
    """
    found = [
        section
        for section in sections
        if section.data_type == "tflite_model" and section.model_type == model_type
    ]
    if len(found) > 1:
        raise RunError(f"{len(found)} sections named {model_type}, needed one; export again")
    return found[0] if found else None


def _check_prologue(path: Path, prologue: bytes, file_bytes: int) -> int:
    if prologue[: len(MAGIC)] != MAGIC:
        raise RunError(f"{path}: not a .litertlm file (found {prologue[:8]!r}, needed {MAGIC!r})")
    if len(prologue) < _HEADER_START:
        raise RunError(f"{path}: cut off after {len(prologue)} bytes; copy the file again")
    major, minor = struct.unpack_from("<II", prologue, len(MAGIC))
    if major != FORMAT_VERSION:
        raise RunError(
            f"{path}: .litertlm version {major}.{minor}, this runtime reads {FORMAT_VERSION}.x; "
            "export again with the matching gemma-export"
        )
    (header_end,) = struct.unpack_from("<Q", prologue, 24)
    if not _HEADER_START < header_end <= min(file_bytes, _HEADER_START + _MAX_HEADER_BYTES):
        raise RunError(
            f"{path}: header ends at byte {header_end} of {file_bytes}; copy the file again"
        )
    return int(header_end)


def _parse_sections(header: bytes, header_end: int, file_bytes: int) -> Iterator[Section]:
    metadata = Table.root(header).table(1)
    if metadata is None:
        raise FlatbufferError("no section list")
    for index, entry in enumerate(metadata.tables(0)):
        if index >= _MAX_ENTRIES:
            raise FlatbufferError(f"more than {_MAX_ENTRIES} sections")
        begin, end = entry.number(1, "<Q"), entry.number(2, "<Q")
        if not header_end <= begin <= end <= file_bytes:
            raise FlatbufferError(
                f"section {index} lies at bytes {begin} to {end} of a file of {file_bytes}"
            )
        yield Section(
            data_type=DATA_TYPES.get(entry.number(3, "<B"), "unknown"),
            model_type=_model_type(entry),
            begin=begin,
            end=end,
        )


def _model_type(entry: Table) -> str:
    for index, item in enumerate(entry.tables(0)):
        if index >= _MAX_ENTRIES:
            raise FlatbufferError(f"more than {_MAX_ENTRIES} items in one section")
        if item.string(0) == "model_type" and item.number(1, "<B") == _STRING_VALUE:
            value = item.table(2)
            return value.string(0).lower() if value is not None else ""
    return ""
