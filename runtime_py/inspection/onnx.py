"""What the .onnx graphs of a bundle and their data file hold, read without onnxruntime.

Field numbers are those of onnx.proto (ONNX 1.23).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from runtime_py.bundle.manifest import bundle_path
from runtime_py.bundle.sliding import KEY, read_sliding
from runtime_py.formats.mapping import mapped
from runtime_py.formats.protobuf import Message, ProtobufError
from runtime_py.inspection.findings import (
    Constant,
    Findings,
    KvBuffer,
    Section,
    Signature,
    Size,
    Use,
    Value,
    Weight,
    group_size,
    size_bytes,
)
from runtime_py.terminal.printable import one_line

GRAPHS = ("model.fill.onnx", "model.finish.onnx", "model.draft.onnx")
_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
_TYPES |= {11: "float64", 16: "bfloat16", 21: "uint4", 22: "int4"}
_MATRIX_TYPES = ("float32", "float16", "uint8")
_EXTERNAL = 1
_MAX_STEPS = 4  # between an initializer and what multiplies with it
# Modules that hold the target's tensors; the drafter's module is called as recipes call it.
_MODULES = ("embedder.", "per_layer_embedder.", "target.")
_KV_PREFIX, _KV_ROWS_DIM = "past_key_values.", 2  # [1, G, C, E]
# Operator -> the inputs that are matrix and scales (-1: none), and what it does with the matrix.
_READERS: Mapping[str, tuple[int, int, Use]] = {
    "FusedMatMul": (1, -1, "matmul"),
    "MatMulNBits": (1, 2, "matmul"),
    "Gather": (0, -1, "lookup"),
    "GatherBlockQuantized": (0, 2, "lookup"),
}
_SAME_NUMBERS = ("Cast", "Expand", "Reshape", "Split")  # their first input, or a part of it
_EXPERT = re.compile(r"(layers\.\d+\.experts\.\w+)\.\d+\.weight")


@dataclass
class _Stored:
    """One tensor of the files, and what reads it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    num_groups: int = 1
    scale_bytes: int = 0
    uses: dict[Use, None] = field(default_factory=dict)
    used_by: dict[str, None] = field(default_factory=dict)
    is_scales: bool = False


_Source = tuple[str, int]  # a value, and how many parts the node that takes it makes of it
_Place = tuple[str, int, str]  # file, first byte, and the name of what lies in a graph itself


class _Reader:
    """Collects the tensors of several graphs, each range of bytes once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.stored: dict[_Place, _Stored] = {}
        self.file_sizes: dict[str, int] = {}

    def read(self, file: str, graph: Message) -> None:
        tensors = dict(self._tensor(file, entry) for entry in graph.messages(5))
        sources: dict[str, _Source] = {}
        for node in graph.messages(1):
            kind, inputs = node.text(4), node.texts(1)
            if kind in _SAME_NUMBERS and inputs:
                outputs = node.texts(2)
                sources.update((output, (inputs[0], len(outputs))) for output in outputs)
            elif kind in _READERS:
                self._use(file, node, [_follow(name, sources) for name in inputs], tensors)

    def _use(
        self, file: str, node: Message, inputs: list[_Source], tensors: Mapping[str, _Place]
    ) -> None:
        matrix_input, scales_input, use = _READERS[node.text(4)]
        if len(inputs) <= max(matrix_input, scales_input):
            return
        place = tensors.get(inputs[matrix_input][0])
        matrix = self.stored[place] if place else None
        if matrix is None or len(matrix.shape) < 2:
            return
        if not matrix.uses and matrix.dtype not in _MATRIX_TYPES:
            return
        scales_name, num_parts = inputs[scales_input]
        if not matrix.uses and scales_input >= 0 and scales_name in tensors:
            scales = self.stored[tensors[scales_name]]
            scales.is_scales = True
            _quantized(matrix, scales.size_bytes // num_parts, _attributes(node))
        matrix.uses[use] = None
        matrix.used_by[file] = None

    def _tensor(self, file: str, tensor: Message) -> tuple[str, _Place]:
        name, dtype = tensor.text(8), _TYPES.get(tensor.number(2), f"type {tensor.number(2)}")
        shape = tensor.numbers(1)
        size = size_bytes(dtype, shape)
        place: _Place = (file, 0, name)
        if tensor.number(14) == _EXTERNAL:
            external = {entry.text(1): entry.text(2) for entry in tensor.messages(13)}
            place = self._external(external, size)
        stored = _Stored(_checkpoint_name(name), dtype, shape, size)
        self.stored.setdefault(place, stored)
        return name, place

    def _external(self, external: Mapping[str, str], size: int) -> _Place:
        file = external.get("location", "")
        if file not in self.file_sizes:
            path = bundle_path(self._folder, file)
            if Path(file).name != file or not path.is_file():
                raise ProtobufError(f"weights in {one_line(file)[:80]!r}, which is not there")
            self.file_sizes[file] = path.stat().st_size
        begin, length = (_decimal(external.get(key, "0")) for key in ("offset", "length"))
        if length != size or begin + length > self.file_sizes[file]:
            raise ProtobufError(
                f"a tensor of {size} bytes at {begin} to {begin + length} of {one_line(file)}, "
                f"which has {self.file_sizes[file]}"
            )
        return file, begin, ""


def inspect(path: Path) -> Findings:
    """Read model.fill.onnx and what belongs to it.

    Raises:
        RunError: if a file cannot be read.
        ProtobufError: if one is damaged.
    """
    reader = _Reader(path.parent)
    signatures: list[Signature] = []
    said: dict[str, str] = {}
    for name in (path.name, *GRAPHS[1:]):
        file = path.with_name(name)
        if file == path or file.is_file():
            with mapped(file) as data:
                model = Message(data)
                graph = model.message(7)
                reader.read(name, graph)
                signatures.append(_signature(name, graph))
                said = said or {entry.text(1): entry.text(2) for entry in model.messages(14)}
                reader.file_sizes[name] = len(data)
    weights = tuple(_stacked(_weight(stored) for stored in reader.stored.values() if stored.uses))
    kv = _kv(signatures[0], _decimal(said.get("context_length", "0")))
    found = Findings(
        runtime="onnx",
        files=reader.file_sizes,
        sections=tuple(
            Section(file=name, name="the whole file", begin=0, size_bytes=size)
            for name, size in reader.file_sizes.items()
        ),
        weights=weights,
        constants=tuple(
            Constant(name=s.name, dtype=s.dtype, shape=s.shape, size_bytes=s.size_bytes)
            for s in reader.stored.values()
            if not s.uses and not s.is_scales
        ),
        signatures=tuple(signatures),
        kv=kv,
        notes=("what a graph needs between its operators is decided when onnxruntime runs it",),
    )
    return found.with_windows(read_sliding(path, said.get(KEY, ""), found.kv_layers))


def _quantized(matrix: _Stored, scale_bytes: int, attributes: Mapping[str, int]) -> None:
    """What the bytes of a matrix stand for; `bits` is the operator's."""
    bits = attributes.get("bits", 8)
    num_rows = matrix.shape[0]
    num_columns = attributes.get("K") or matrix.shape[-1] * 8 // max(1, bits)
    matrix.dtype, matrix.shape = f"int{bits}", (num_rows, num_columns)
    matrix.num_groups = scale_bytes // 4 // max(1, num_rows)
    matrix.scale_bytes = scale_bytes


def _attributes(node: Message) -> dict[str, int]:
    return {attribute.text(1): attribute.number(3) for attribute in node.messages(5)}


def _follow(name: str, sources: Mapping[str, _Source]) -> _Source:
    """The value that `name` shows in another type or shape, and of how many parts it is one."""
    num_parts = 1
    for _ in range(_MAX_STEPS):
        name, others = sources.get(name, (name, 1))
        num_parts *= others
    return name, num_parts


def _checkpoint_name(name: str) -> str:
    shown = one_line(name)
    return next((shown.removeprefix(m) for m in _MODULES if shown.startswith(m)), shown)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ProtobufError(f"a place in a file at {one_line(text)[:40]!r}")
    return int(text)


def _weight(stored: _Stored) -> Weight:
    return Weight(
        name=stored.name,
        dtype=stored.dtype,
        group_size=group_size(stored.shape[-1], stored.num_groups),
        shape=stored.shape,
        size_bytes=stored.size_bytes,
        scale_bytes=stored.scale_bytes,
        uses=tuple(sorted(stored.uses)),
        used_by=tuple(stored.used_by),
    )


def _stacked(weights: Iterable[Weight]) -> Iterator[Weight]:
    """The matrices of all experts of a layer are one stack [N, O, I], as in the checkpoint."""
    stacks: dict[object, list[Weight]] = {}
    for weight in weights:
        match = _EXPERT.fullmatch(weight.name)
        if match is None:
            yield weight
        else:
            stacks.setdefault((match[1], weight.dtype, weight.shape), []).append(weight)
    for parts in stacks.values():
        yield replace(
            parts[0],
            name=parts[0].name.removesuffix(".weight").rpartition(".")[0],
            shape=(len(parts), *parts[0].shape),
            size_bytes=sum(part.size_bytes for part in parts),
            scale_bytes=sum(part.scale_bytes for part in parts),
        )


def _signature(file: str, graph: Message) -> Signature:
    inputs, outputs = (tuple(_value(entry) for entry in graph.messages(n)) for n in (11, 12))
    name = file.removeprefix("model.").removesuffix(".onnx")
    return Signature(name=name, where=file, inputs=inputs, outputs=outputs)


def _value(entry: Message) -> Value:
    tensor = entry.message(2).message(1)
    number = tensor.number(1)
    shape: Iterator[Size] = (size.number(1) or None for size in tensor.message(2).messages(1))
    dtype = _TYPES.get(number, f"type {number}")
    return Value(one_line(entry.text(1)), dtype, tuple(shape))


def _kv(fill: Signature, context_length: int) -> tuple[KvBuffer, ...]:
    buffers = []
    for value in fill.inputs:
        if value.name.startswith(_KV_PREFIX) and len(value.shape) == 4:
            row = [size or 1 for size in value.shape]
            row[_KV_ROWS_DIM] = 1
            buffers.append(
                KvBuffer(
                    name=value.name,
                    dtype=value.dtype,
                    num_rows=value.shape[_KV_ROWS_DIM] or context_length,
                    row_bytes=size_bytes(value.dtype, row),
                )
            )
    return tuple(buffers)
