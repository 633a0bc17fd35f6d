"""Reader of one .tflite: its signatures, tensors and weights. Nothing in the file is trusted.

Field numbers are those of schema.fbs of LiteRT (ai-edge-litert 2.3.0).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtime_py.formats.flatbuffer import FlatbufferError, Table, pick, unpack_at
from runtime_py.formats.tensor_spec import TensorSpec

MAX_RANK = 8
_IDENTIFIER = b"TFL3"
_TYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
    17: "int4",
    18: "bfloat16",
    19: "int2",
    20: "uint4",
}


@dataclass(frozen=True)
class TfliteSignature:
    """A signature's tensors by name, in the file's order."""

    name: str
    subgraph: int
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


def read_model(data: bytes | memoryview) -> Table:
    """The root table. Raises FlatbufferError if this is no .tflite."""
    if data[4:8] != _IDENTIFIER:
        found = bytes(data[4:8])
        raise FlatbufferError(f"found {found!r} at byte 4, needed {_IDENTIFIER!r}")
    unpack_at(data, "<I", 0)
    return Table.root(data)


def read_weights(model: Table, section_bytes: int) -> list[tuple[int, int]]:
    """The (first byte, number of bytes) of every buffer, behind the flatbuffer or in it.

    LiteRT verifies the flatbuffer, but not that the buffers behind it lie in the section.

    Raises:
        FlatbufferError: naming the first that does not.
    """
    return [_extent(index, buffer, section_bytes) for index, buffer in enumerate(model.tables(4))]


def _extent(index: int, buffer: Table, section_bytes: int) -> tuple[int, int]:
    begin, size = buffer.number(1, "<Q"), buffer.number(2, "<Q")
    if begin + size > section_bytes:
        raise FlatbufferError(
            f"weight {index} ends at byte {begin + size} of a section of {section_bytes}"
        )
    return (begin, size) if begin > 1 else buffer.vector(0, item_bytes=1)


def read_tensors(model: Table) -> list[list[Table]]:
    """The tensors of each subgraph."""
    return [list(graph.tables(0)) for graph in model.tables(2)]


def read_signatures(model: Table, tensors: Sequence[Sequence[Table]]) -> Iterator[TfliteSignature]:
    """Every signature; `tensors` as read_tensors gives them.

    Raises:
        FlatbufferError: if the file leads out of itself.
    """
    for entry in model.tables(7):
        subgraph = entry.number(4, "<I")
        own = pick(tensors, subgraph)
        inputs, outputs = (
            {
                item.string(0): read_spec(pick(own, item.number(1, "<I")))
                for item in entry.tables(field)
            }
            for field in (0, 1)
        )
        yield TfliteSignature(entry.string(2), subgraph, inputs, outputs)


def read_spec(tensor: Table) -> TensorSpec:
    number = tensor.number(1, "<b")
    return TensorSpec(_TYPES.get(number, f"type {number}"), tensor.numbers(0, "<i", MAX_RANK))
