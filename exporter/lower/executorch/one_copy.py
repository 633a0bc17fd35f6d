"""One copy in a .pte of what is a constant of the program and XNNPACK's data too.

An operator looks up rows of a tied embedding, whose table is a constant, and XNNPACK multiplies
with it, as named data. Constants are ranges of one segment, each named by its distance from the
segment's start; each named data is a segment. So such a constant is left out of the file, its
distance leads to the equal data, and the constants' segment reaches to the end of that data.
ExecuTorch's runtime allows segments that overlap. Only its Python reader of whole files takes a
constant to end where the next one begins.

Field numbers are those of schema/program.fbs of ExecuTorch 1.5.1.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from exporter.errors import ExportError
from exporter.lower.executorch.vendor import Emitted
from runtime_py.formats.flatbuffer import FlatbufferError, Table, unpack_at

WORTH_BYTES = 4096  # what is smaller may be there twice
HEAD_BYTES = 64  # of the file: the first table's place, and the extended header
PROGRAM_SIZE_AT = 16  # of the file


def write_once(emitted: Emitted, out: Path) -> None:
    """Write the program as ExecuTorch would, but equal bytes once.

    Raises:
        ExportError: if the file is not laid out as ExecuTorch 1.5.1 lays it out.
    """
    twins = find_twins(emitted.constants, emitted.named)
    with out.open("w+b") as file:
        if not twins:
            emitted.write(file)
            return
        # Next to the constants, so that a loader that reads their whole segment reads no more.
        emitted.write_without(twins, set(twins.values()), file)
        sizes = {index: len(emitted.constants[index]) for index in twins}
        try:
            _point(file, twins, sizes)
        except FlatbufferError as error:
            raise ExportError(f"{out}: {error}; install the pinned ExecuTorch") from None


def find_twins(constants: Sequence[bytes], named: Mapping[str, bytes]) -> dict[int, str]:
    """Number of a constant -> key of the named data with the same bytes."""
    by_size: dict[int, list[str]] = {}
    for key, data in named.items():
        by_size.setdefault(len(data), []).append(key)
    found = {}
    for index, constant in enumerate(constants):
        if len(constant) < WORTH_BYTES:
            continue
        for key in by_size.get(len(constant), ()):
            if named[key] == constant:
                found[index] = key
                break
    return found


def _point(file: BinaryIO, twins: Mapping[int, str], sizes: Mapping[int, int]) -> None:
    """Rewrite the places of the constants that were left out, and the size of their segment."""
    file.seek(0)
    program_bytes = unpack_at(file.read(HEAD_BYTES), "<Q", PROGRAM_SIZE_AT)
    file.seek(0)
    root = Table.root(file.read(program_bytes))
    constants, segments = root.table(5), list(root.tables(4))
    if constants is None:
        raise FlatbufferError("no constants")
    own = segments[constants.number(0, "<I")]
    start, end = own.number(0, "<Q"), own.number(1, "<Q")
    places = {entry.string(0): segments[entry.number(1, "<I")] for entry in root.tables(7)}
    first, _ = constants.vector(1, item_bytes=8)
    for index, key in twins.items():
        place = places.get(key)
        begin = -1 if place is None else place.number(0, "<Q") - start
        if place is None or begin < 0 or place.number(1, "<Q") != sizes[index]:
            raise FlatbufferError(
                f"the data {key[:12]} of the .pte is not where it was put, needed {sizes[index]} "
                "bytes behind the constants"
            )
        end = max(end, begin + sizes[index])
        _write_number(file, first + 8 * index, begin)
    _write_number(file, own.position(1), end)


def _write_number(file: BinaryIO, position: int, value: int) -> None:
    file.seek(position)
    file.write(struct.pack("<Q", value))
