"""What a .pte holds, read without ExecuTorch."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runtime_py.bundle.sliding import KEY as SLIDING
from runtime_py.bundle.sliding import sliding_entry
from runtime_py.formats.flatbuffer import pick
from runtime_py.formats.mapping import mapped
from runtime_py.formats.weight_names import KEY, fingerprint, read_names
from runtime_py.inspection.executorch_delegate import Stored, read_delegate
from runtime_py.inspection.executorch_program import Method, Program, Tensor
from runtime_py.inspection.findings import (
    ITEM_BITS,
    Constant,
    Findings,
    KvBuffer,
    Section,
    Signature,
    Use,
    Value,
    Weight,
    group_size,
)

_KV_PREFIX, _KV_ROWS_DIM = "kv.", 1  # [1, C, G, E]
# Operators that look rows up -> the type of the numbers, "": the tensor's own. Their first two
# inputs are the table and, if it is quantized, its scales.
_LOOKUPS = {
    "aten::embedding": "",
    "quantized_decomposed::embedding_byte": "int8",
    "quantized_decomposed::embedding_4bit": "int4",
    "quantized_decomposed::embedding_2bit": "int2",
}


@dataclass
class _Matrix:
    """A matrix as it is put together."""

    name: str  # where it lies, for want of a better one
    data: memoryview
    dtype: str
    shape: tuple[int, ...]
    num_groups: int
    scale_bytes: int
    uses: dict[Use, None] = field(default_factory=dict)
    used_by: dict[str, None] = field(default_factory=dict)


class _Reader:
    """Collects what the methods of a program hold, each range of bytes once.

    A matrix that is looked up and multiplied with is a constant and a segment: the same bytes.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.matrices: dict[range, _Matrix] = {}
        self.constants: dict[str, Constant] = {}
        self._scales: set[range] = set()

    def read(self, method: Method) -> None:
        for place in method.delegates:
            for stored in read_delegate(self._program.bytes_of(place)):
                self._add_stored(stored, method.name)
        for operator, arguments in method.calls:
            if operator in _LOOKUPS:
                self._add_table(method, _LOOKUPS[operator], arguments)
        for tensor in method.values:
            if tensor is not None and tensor.constant:
                self._add_constant(tensor)

    def _add_stored(self, stored: Stored, method: str) -> None:
        place = self._program.named_place(stored.key)
        # Equal bytes have several keys and one segment.
        name = f"segment {self._program.named[stored.key]}"
        if not stored.is_matrix:
            self.constants[name] = Constant(
                name=name, dtype=stored.dtype, shape=stored.shape, size_bytes=len(place)
            )
            return
        scales = self._program.named_data(stored.scales_key) if stored.scales_key else b""
        matrix = self.matrices.setdefault(
            place,
            _Matrix(
                name=name,
                data=self._program.bytes_of(place),
                dtype=stored.dtype,
                shape=stored.shape,
                num_groups=stored.num_groups,
                scale_bytes=len(scales),
            ),
        )
        matrix.uses["matmul"] = None
        matrix.used_by[method] = None

    def _add_table(self, method: Method, dtype: str, arguments: tuple[int, ...]) -> None:
        table = pick(method.values, pick(arguments, 0))
        scales = pick(method.values, pick(arguments, 1)) if dtype else None
        if table is None or not table.constant or len(table.shape) != 2:
            return
        place = self._program.constant_place(table)
        if scales is not None and scales.constant:
            self._scales.add(self._program.constant_place(scales))
        if place not in self.matrices:
            num_rows, stored_columns = table.shape
            num_columns = stored_columns * ITEM_BITS.get(table.dtype, 0)
            self.matrices[place] = _Matrix(
                name=f"constant {table.constant}",
                data=self._program.bytes_of(place),
                dtype=dtype or table.dtype,
                shape=(num_rows, num_columns // ITEM_BITS.get(dtype or table.dtype, 8)),
                num_groups=scales.shape[1] if scales is not None and len(scales.shape) > 1 else 1,
                scale_bytes=0 if scales is None else scales.size_bytes,
            )
        self.matrices[place].uses["lookup"] = None
        self.matrices[place].used_by[method.name] = None

    def _add_constant(self, tensor: Tensor) -> None:
        place, name = self._program.constant_place(tensor), f"constant {tensor.constant}"
        if place not in self.matrices and place not in self._scales:
            self.constants[name] = Constant(
                name=name, dtype=tensor.dtype, shape=tensor.shape, size_bytes=tensor.size_bytes
            )


def inspect(path: Path) -> Findings:
    """Read a .pte.

    Raises:
        RunError: if it cannot be read.
        FlatbufferError: if it is damaged, or no .pte.
    """
    with mapped(path) as data:
        program = Program(data)
        names = read_names(program.named_data(KEY)) if KEY in program.named else {}
        methods = [method for method in program.methods if method.inputs]  # others are numbers
        reader = _Reader(program)
        for method in methods:
            reader.read(method)
        weights = tuple(_weight(matrix, names) for matrix in reader.matrices.values())
        file_bytes, numbers = len(data), _sliding(program)
    kv = _kv(methods)
    found = Findings(
        runtime="executorch",
        files={path.name: file_bytes},
        sections=tuple(_sections(path.name, program, methods)),
        weights=weights,
        constants=tuple(reader.constants.values()),
        signatures=tuple(_signature(path.name, method) for method in methods),
        kv=kv,
        notes=(
            "types, shapes and sizes are XNNPACK's own, read from the delegates; the names of the "
            + (
                "matrices are the exporter's claim, tied to the first bytes of each"
                if names
                else "matrices are not in the file"
            ),
            "a size that is free shows its upper bound; inputs and outputs have no names",
            "what XNNPACK needs inside its delegates is decided when the program is loaded",
        ),
    )
    return found.with_windows(sliding_entry(path, numbers, found.kv_layers) if numbers else None)


def _sliding(program: Program) -> list[int]:
    """The window and the layers that slide, what the method of that name gives; may be empty."""
    for method in program.methods:
        if method.name == SLIDING and method.outputs:
            tensor = pick(method.values, method.outputs[0])
            if tensor is not None and tensor.dtype == "int64" and tensor.constant:
                data = program.bytes_of(program.constant_place(tensor))
                return [number for (number,) in struct.iter_unpack("<q", data)]
    return []


def _weight(matrix: _Matrix, names: dict[str, str]) -> Weight:
    return Weight(
        name=names.get(fingerprint(matrix.data), matrix.name),
        dtype=matrix.dtype,
        group_size=group_size(matrix.shape[1], matrix.num_groups),
        shape=matrix.shape,
        size_bytes=len(matrix.data),
        scale_bytes=matrix.scale_bytes,
        uses=tuple(sorted(matrix.uses)),
        used_by=tuple(matrix.used_by),
    )


def _sections(file: str, program: Program, methods: list[Method]) -> Iterator[Section]:
    named = [pick(program.segments, index) for index in set(program.named.values())]
    groups = {
        "program": [range(program.size_bytes)],
        "constants": [_own(program.constants, program.segments)],
        **{f"delegates of {method.name}": list(method.delegates) for method in methods},
        "data of delegates": named,
    }
    for name, places in groups.items():
        if places:
            begin, size = min(place.start for place in places), sum(map(len, places))
            yield Section(file=file, name=name, begin=begin, size_bytes=size)


def _own(constants: range, segments: list[range]) -> range:
    """The constants that are nobody else's: their segment may reach over others (`one_copy.py`)."""
    inside = [place.start for place in segments if constants.start < place.start < constants.stop]
    return range(constants.start, min(inside, default=constants.stop))


def _signature(file: str, method: Method) -> Signature:
    inputs, outputs = (
        tuple(
            _value(f"{kind}_{position}", pick(method.values, index))
            for position, index in enumerate(numbers)
        )
        for kind, numbers in (("input", method.inputs), ("output", method.outputs))
    )
    return Signature(name=method.name, where=file, inputs=inputs, outputs=outputs)


def _value(name: str, tensor: Tensor | None) -> Value:
    return Value(name, tensor.dtype, tensor.shape) if tensor else Value(name, "no tensor", ())


def _kv(methods: list[Method]) -> tuple[KvBuffer, ...]:
    """Buffers that methods share, by their names."""
    buffers: dict[str, KvBuffer] = {}
    for tensor in (value for method in methods for value in method.values):
        if tensor is None or not tensor.name.startswith(_KV_PREFIX) or len(tensor.shape) != 4:
            continue
        num_rows = tensor.shape[_KV_ROWS_DIM]
        buffers[tensor.name] = KvBuffer(
            name=tensor.name,
            dtype=tensor.dtype,
            num_rows=num_rows,
            row_bytes=tensor.size_bytes // max(1, num_rows),
        )
    return tuple(buffers.values())
