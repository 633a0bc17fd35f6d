"""One copy in a .pte of what is a constant of the program and XNNPACK's data too.

A tied embedding is looked up by an operator, whose table is a constant, and multiplied with by
XNNPACK, whose weights are named data. Constants are ranges of one segment of the file, each named
by its distance from the segment's start, and each named data is a segment. So such a constant is
left out, its place is said to be that of the equal data, and the constants' segment is made to
reach to that data's end. Nothing in ExecuTorch's runtime forbids segments that overlap; only
its Python reader of whole files takes a constant to end where the next one begins.
"""

import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from exporter.errors import ExportError

if TYPE_CHECKING:
    from executorch.exir import ExecutorchBackendConfig, ExecutorchProgramManager
    from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
    from executorch.exir.schema import Program

WORTH_BYTES = 4096  # what is smaller may be there twice
LEFT_OUT = bytes(1)  # not empty: a segment without bytes has no field for its size
HEAD_BYTES = 64  # of the file: the first table's place, and the extended header
PROGRAM_SIZE_AT = 16  # of the file
# Places of fields in flatbuffer vtables: 4 + 2 * number of the field.
OFFSETS_FIELD = 6  # of the constants
SIZE_FIELD = 6  # of a segment


def write_once(
    manager: "ExecutorchProgramManager", config: "ExecutorchBackendConfig", out: Path
) -> None:
    """Write the program as `manager.write_to_file` would, but equal bytes once.

    Raises:
        ExportError: if the file is not laid out as ExecuTorch 1.5.1 lays it out.
    """
    from executorch.exir._serialize._program import PTEFile, serialize_pte_binary

    program, data = manager.executorch_program, manager._named_data
    twins = {} if data is None else find_twins(program, data)
    if data is None or not twins:
        with out.open("wb") as file:
            manager.write_to_file(file)
        return
    buffers = program.constant_buffer
    kept = [
        replace(buffer, storage=LEFT_OUT) if index in twins else buffer
        for index, buffer in enumerate(buffers)
    ]
    # Next to the constants, so that a loader that reads their whole segment reads no more.
    order = sorted(data.pte_data, key=lambda key: key not in set(twins.values()))
    cord = serialize_pte_binary(
        PTEFile(
            program=replace(program, constant_buffer=kept),
            mutable_data=manager._emitter_output.mutable_data,
            named_data=replace(data, pte_data={key: data.pte_data[key] for key in order}),
        ),
        extract_delegate_segments=config.extract_delegate_segments,
        segment_alignment=config.segment_alignment,
        constant_tensor_alignment=config.constant_tensor_alignment,
        delegate_alignment=config.delegate_alignment,
    )
    with out.open("w+b") as file:
        cord.write_to_file(file)
        sizes = {index: len(buffers[index].storage) for index in twins}
        _point(file, twins, sizes, out)


def find_twins(program: "Program", data: "NamedDataStoreOutput") -> dict[int, str]:
    """Number of a constant -> key of the named data with the same bytes."""
    by_size: dict[int, dict[int, str]] = {}
    for key, entry in data.pte_data.items():
        size = len(data.buffers[entry.buffer_index])
        by_size.setdefault(size, {}).setdefault(entry.buffer_index, key)
    found = {}
    for index, buffer in enumerate(program.constant_buffer):
        if len(buffer.storage) < WORTH_BYTES:
            continue
        for number, key in by_size.get(len(buffer.storage), {}).items():
            if data.buffers[number] == buffer.storage:
                found[index] = key
                break
    return found


def _point(file: BinaryIO, twins: dict[int, str], sizes: dict[int, int], out: Path) -> None:
    """Rewrite the places of the constants that were left out, and the size of their segment."""
    from executorch.exir._serialize._flatbuffer_program import _patch_generated_flatbuffer_aliases
    from executorch.exir._serialize.generated.executorch_flatbuffer.Program import Program

    _patch_generated_flatbuffer_aliases()  # without it, names of classes are modules
    file.seek(0)
    (program_size,) = struct.unpack_from("<Q", file.read(HEAD_BYTES), PROGRAM_SIZE_AT)
    file.seek(0)
    root = Program.GetRootAs(bytearray(file.read(program_size)), 0)
    constants = root.ConstantSegment()
    segments = [root.Segments(index) for index in range(root.SegmentsLength())]
    own = segments[constants.SegmentIndex()]
    named = (root.NamedData(index) for index in range(root.NamedDataLength()))
    places = {entry.Key().decode(): segments[entry.SegmentIndex()] for entry in named}
    end, first = own.Size(), constants._tab.Vector(constants._tab.Offset(OFFSETS_FIELD))
    for index, key in twins.items():
        place = places.get(key)
        if place is None or place.Size() != sizes[index] or place.Offset() < own.Offset():
            raise ExportError(
                f"{out}: the data {key[:12]} of the .pte is not where it was put, needed "
                f"{sizes[index]} bytes behind the constants; install the pinned ExecuTorch"
            )
        begin = place.Offset() - own.Offset()
        end = max(end, begin + sizes[index])
        _write_number(file, first + 8 * index, begin)
    size_at = own._tab.Pos + own._tab.Offset(SIZE_FIELD)
    _write_number(file, size_at, end)


def _write_number(file: BinaryIO, position: int, value: int) -> None:
    file.seek(position)
    file.write(struct.pack("<Q", value))
