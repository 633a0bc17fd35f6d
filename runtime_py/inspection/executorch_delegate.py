"""What XNNPACK's graph in a .pte says about the matrices that it multiplies with.

Field numbers are those of backends/xnnpack/serialization/schema.fbs of ExecuTorch 1.5.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from runtime_py.formats.flatbuffer import FlatbufferError, Table, pick, unpack_at

_MAGIC, _IDENTIFIER = b"XH00", b"XN01"
_MAX_RANK = 8
_TENSOR, _QUANTIZED = 1, 2  # members of XValueUnion
_FULLY_CONNECTED = 2  # of XNodeUnion
_PER_CHANNEL, _PER_GROUP = 1, 4  # of XNNQuantParams
_SCALES_FIELDS = {_PER_CHANNEL: (2, 3), _PER_GROUP: (4, 5)}  # scale_buffer_idx, num_scales
_TYPES = {1: "float32", 2: "float16", 6: "int8", 8: "int4", 10: "int4", 14: "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A constant of a delegate; its bytes are the program's named data."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    is_matrix: bool  # the weight of a linear
    scales_key: str  # "" without scales
    num_groups: int  # scales of a row


def read_delegate(blob: memoryview) -> Iterator[Stored]:
    """The constants of one delegate.

    Raises:
        FlatbufferError: if the blob is not XNNPACK's, or damaged.
    """
    graph = _graph(blob)
    keys = [entry.string(2) for entry in graph.tables(8)]
    filters = {
        node.number(1, "<I")
        for kind, node in ((n.number(0, "<B"), n.table(1)) for n in graph.tables(1))
        if kind == _FULLY_CONNECTED and node is not None
    }
    for entry in graph.tables(2):
        kind, value = entry.number(0, "<B"), entry.table(1)
        tensor = value.table(0) if kind == _QUANTIZED and value is not None else value
        if kind not in (_TENSOR, _QUANTIZED) or value is None or tensor is None:
            continue
        index = tensor.number(3, "<I")
        if index:
            scales = _scales(value, keys) if kind == _QUANTIZED else ("", 0)
            yield _stored(tensor, pick(keys, index), filters, scales)


def _graph(blob: memoryview) -> Table:
    if blob[4:8] != _MAGIC:
        raise FlatbufferError(f"a delegate begins with {bytes(blob[4:8])!r}, needed {_MAGIC!r}")
    begin, size = unpack_at(blob, "<I", 10), unpack_at(blob, "<I", 14)
    graph = blob[begin : begin + size]
    if graph[4:8] != _IDENTIFIER:
        raise FlatbufferError(f"a delegate's graph is {bytes(graph[4:8])!r}, not {_IDENTIFIER!r}")
    return Table.root(graph)


def _stored(tensor: Table, key: str, filters: set[int], scales: tuple[str, int]) -> Stored:
    number, shape = tensor.number(0, "<h"), tensor.numbers(2, "<I", _MAX_RANK)
    scales_key, num_scales = scales
    return Stored(
        key=key,
        dtype=_TYPES.get(number, f"XNNPACK type {number}"),
        shape=shape,
        is_matrix=tensor.number(6, "<I") in filters and len(shape) == 2 and shape[0] > 1,
        scales_key=scales_key,
        num_groups=num_scales // shape[0] if shape and shape[0] else 0,
    )


def _scales(value: Table, keys: list[str]) -> tuple[str, int]:
    kind, parameters = value.number(1, "<B"), value.table(2)
    if kind not in _SCALES_FIELDS or parameters is None:
        return "", 0
    index_field, count_field = _SCALES_FIELDS[kind]
    return pick(keys, parameters.number(index_field, "<I")), parameters.number(count_field, "<I")
