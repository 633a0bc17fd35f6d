"""The tables of a .pte, every range of bytes in it checked.

Field numbers are those of schema/program.fbs of ExecuTorch 1.5.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from runtime_py.formats.flatbuffer import FlatbufferError, Table, pick, unpack_at
from runtime_py.inspection.findings import size_bytes
from runtime_py.terminal.printable import one_line

_IDENTIFIER, _EXTENDED = b"ET12", b"eh00"
_MAX_RANK, _MAX_ARGUMENTS, _MAX_ITEMS = 16, 1 << 10, 1 << 20
_TENSOR = 5  # member of KernelTypes
_KERNEL_CALL = 1  # of InstructionArguments
_XNNPACK = "XnnpackBackend"
_TYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
    15: "bfloat16",
}


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]  # upper bounds
    constant: int  # number of its bytes in the constant segment; 0: not a constant
    name: str  # only what is written to has one

    @property
    def size_bytes(self) -> int:
        return size_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class Method:
    """One method: its values by number, and what is done with them."""

    name: str
    values: tuple[Tensor | None, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    calls: tuple[tuple[str, tuple[int, ...]], ...]  # operator, numbers of its arguments
    delegates: tuple[range, ...]  # XNNPACK's, in the file


class Program:
    """A .pte.

    Attributes:
        size_bytes: of the tables, without the segments.
        segments: ranges of the file.
        named: key -> number of its segment.
        constants: the range of the constant segment.

    Raises:
        FlatbufferError: if it is no .pte, or damaged.
    """

    def __init__(self, data: memoryview) -> None:
        if data[4:8] != _IDENTIFIER or data[8:12] != _EXTENDED:
            raise FlatbufferError(f"it begins with {bytes(data[:12])!r}, which no .pte does")
        self._data = data
        self.size_bytes, base = unpack_at(data, "<Q", 16), unpack_at(data, "<Q", 24)
        root = Table.root(data[: self.size_bytes])
        self.segments = [
            self._range(base + entry.number(0, "<Q"), entry.number(1, "<Q"))
            for entry in root.tables(4)
        ]
        self.named = {entry.string(0): entry.number(1, "<I") for entry in root.tables(7)}
        constants = root.table(5)
        self.constants = range(0)
        self._offsets: tuple[int, ...] = ()
        if constants is not None:
            self.constants = pick(self.segments, constants.number(0, "<I"))
            self._offsets = constants.numbers(1, "<Q", _MAX_ITEMS)
        self.methods = [self._method(plan) for plan in root.tables(1)]

    def bytes_of(self, place: range) -> memoryview:
        return self._data[place.start : place.stop]

    def named_data(self, key: str) -> memoryview:
        return self.bytes_of(self.named_place(key))

    def constant_place(self, tensor: Tensor) -> range:
        """Where a constant lies in the file.

        Raises:
            FlatbufferError: if that is not within the constants' segment.
        """
        begin = self.constants.start + pick(self._offsets, tensor.constant)
        end = begin + tensor.size_bytes
        if end > self.constants.stop:
            raise FlatbufferError(f"a constant ends {end - self.constants.stop} bytes too late")
        return range(begin, end)

    def named_place(self, key: str) -> range:
        """Where the data of that name lie in the file.

        Raises:
            FlatbufferError: if there are none.
        """
        if key not in self.named:
            raise FlatbufferError(f"no data named {one_line(key)[:80]!r}")
        return pick(self.segments, self.named[key])

    def _range(self, begin: int, size: int) -> range:
        if begin + size > len(self._data):
            raise FlatbufferError(f"a segment ends at byte {begin + size} of {len(self._data)}")
        return range(begin, begin + size)

    def _method(self, plan: Table) -> Method:
        return Method(
            name=one_line(plan.string(0)),
            values=tuple(_tensor(value) for value in plan.tables(2)),
            inputs=plan.numbers(3, "<i", _MAX_ITEMS),
            outputs=plan.numbers(4, "<i", _MAX_ITEMS),
            calls=tuple(_calls(plan)),
            delegates=tuple(self._delegates(plan)),
        )

    def _delegates(self, plan: Table) -> Iterator[range]:
        for delegate in plan.tables(7):
            place = delegate.table(1)
            if delegate.string(0) == _XNNPACK and place is not None and place.number(0, "<B"):
                yield pick(self.segments, place.number(1, "<I"))


def _tensor(value: Table) -> Tensor | None:
    tensor = value.table(1) if value.number(0, "<B") == _TENSOR else None
    if tensor is None:
        return None
    number, more, planned = tensor.number(0, "<b"), tensor.table(9), tensor.table(6)
    shape = tensor.numbers(2, "<i", _MAX_RANK)
    if min(shape, default=0) < 0:
        raise FlatbufferError(f"a tensor of shape {list(shape)}")
    return Tensor(
        dtype=_TYPES.get(number, f"type {number}"),
        shape=shape,
        constant=0 if planned is not None else tensor.number(5, "<I"),
        name=one_line(more.string(1)) if more is not None else "",
    )


def _calls(plan: Table) -> Iterator[tuple[str, tuple[int, ...]]]:
    operators = [entry.string(0) for entry in plan.tables(6)]
    for chain in plan.tables(5):
        for instruction in chain.tables(2):
            call = instruction.table(1)
            if instruction.number(0, "<B") == _KERNEL_CALL and call is not None:
                yield pick(operators, call.number(0, "<i")), call.numbers(1, "<i", _MAX_ARGUMENTS)
