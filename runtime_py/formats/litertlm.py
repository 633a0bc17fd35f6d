"""Reader of the .litertlm container: which section lies where.

The file is untrusted: every offset is checked before it is followed, and whatever does not hold
is a RunError. Nothing here reads a section's content.

Source: LiteRT-LM, schema/core/litertlm_header_schema.fbs and litert_lm_builder (0.18.1).
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime_py.errors import RunError
from runtime_py.formats.flatbuffer import FlatbufferError, Table

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


def read_sections(path: Path) -> tuple[Section, ...]:
    """The sections of a .litertlm file, in file order of the header.

    Raises:
        RunError: if the file is missing, truncated, not a .litertlm, or of another major version.
    """
    header, file_bytes = _read_header(path)
    with _damaged(path):
        return tuple(_parse_sections(header, _HEADER_START + len(header), file_bytes))


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says about itself, as far as it is text.

    Raises:
        RunError: as `read_sections`.
    """
    header, _ = _read_header(path)
    with _damaged(path):
        system = Table.root(header).table(0)
        return {} if system is None else dict(_texts(system))


def _read_header(path: Path) -> tuple[bytes, int]:
    """The header behind the prologue, and the size of the file."""
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prologue = file.read(_HEADER_START)
            header_end = _check_prologue(path, prologue, file_bytes)
            return file.read(header_end - _HEADER_START), file_bytes
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
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
    return next((text.lower() for key, text in _texts(entry) if key == "model_type"), "")


def _texts(entry: Table) -> Iterator[tuple[str, str]]:
    """The items whose value is a text."""
    for index, item in enumerate(entry.tables(0)):
        if index >= _MAX_ENTRIES:
            raise FlatbufferError(f"more than {_MAX_ENTRIES} items in one section")
        if item.number(1, "<B") == _STRING_VALUE:
            value = item.table(2)
            yield item.string(0), value.string(0) if value is not None else ""
