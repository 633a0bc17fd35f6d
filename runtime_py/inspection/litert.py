"""What a .litertlm holds, read from its .tflite sections.

Field numbers are those of schema.fbs of LiteRT (ai-edge-litert 2.3.0).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime_py.bundle.sliding import KEY, read_sliding
from runtime_py.formats.flatbuffer import FlatbufferError, Table, pick
from runtime_py.formats.litertlm import Section as FileSection
from runtime_py.formats.litertlm import read_metadata, read_sections
from runtime_py.formats.mapping import mapped
from runtime_py.formats.tensor_spec import TensorSpec
from runtime_py.formats.tflite import (
    TfliteSignature,
    read_model,
    read_signatures,
    read_spec,
    read_tensors,
    read_weights,
)
from runtime_py.inspection.findings import (
    DRAFTER_PREFIX,
    Constant,
    Findings,
    KvBuffer,
    Section,
    Signature,
    Use,
    Value,
    Weight,
)
from runtime_py.terminal.printable import one_line

_MAX_ARGUMENTS = 1 << 10
_MAX_TENSORS = 1 << 20  # of one section
_DEQUANTIZE, _EMBEDDING_LOOKUP, _FULLY_CONNECTED, _GATHER = 6, 7, 9, 36
_USES: Mapping[int, tuple[int, Use]] = {  # operator -> which input of it, and what for
    _EMBEDDING_LOOKUP: (1, "lookup"),
    _FULLY_CONNECTED: (1, "matmul"),
    _GATHER: (0, "lookup"),
}
_KV_NAME = re.compile(r"kv_cache_([kv])_\d+")
_DRAFTER = "tf_lite_mtp_drafter"


@dataclass
class _Stored:
    """One range of bytes and all tensors that lie on it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    scale_bytes: dict[int, int] = field(default_factory=dict)  # by place, once each
    uses: dict[Use, None] = field(default_factory=dict)
    used_by: dict[str, None] = field(default_factory=dict)


def inspect(path: Path) -> Findings:
    """Read a .litertlm.

    Raises:
        RunError: if the file is damaged or is no .litertlm.
        FlatbufferError: if a section is damaged.
    """
    sections = read_sections(path)
    stored: dict[tuple[int, int], _Stored] = {}
    signatures: list[Signature] = []
    with mapped(path) as data:
        for section in sections:
            if section.data_type == "tflite_model":
                view = data[section.begin : section.end]
                _read_model(view, section, stored, signatures)
    weights = tuple(_weight(entry) for entry in stored.values() if entry.uses)
    kv = _kv(signatures)
    found = Findings(
        runtime="litert",
        files={path.name: path.stat().st_size},
        sections=tuple(
            Section(
                file=path.name,
                name=one_line(section.model_type) or section.data_type,
                begin=section.begin,
                size_bytes=section.size_bytes,
            )
            for section in sections
        ),
        weights=weights,
        constants=tuple(
            Constant(name=s.name, dtype=s.dtype, shape=s.shape, size_bytes=s.size_bytes)
            for s in stored.values()
            if not s.uses
        ),
        signatures=tuple(signatures),
        kv=kv,
        notes=tuple(_notes(kv)),
    )
    text = read_metadata(path).get(KEY, "")
    return found.with_windows(read_sliding(path, text, found.kv_layers))


def _notes(kv: tuple[KvBuffer, ...]) -> Iterator[str]:
    yield (
        "vectors have the names that the converter gave them; what a graph needs between its "
        "operators is decided when LiteRT loads it, and is not in the file"
    )
    if any(buffer.dtype == "int8" for buffer in kv):
        yield (
            "a layer without a window makes all its int8 rows float32 in each call: target and "
            "drafter want room for one such layer each"
        )


def _read_model(
    data: memoryview,
    section: FileSection,
    stored: dict[tuple[int, int], _Stored],
    signatures: list[Signature],
) -> None:
    model = read_model(data)
    graphs = read_tensors(model)
    if sum(map(len, graphs)) > _MAX_TENSORS:
        raise FlatbufferError(f"{section.model_type}: more than {_MAX_TENSORS} tensors")
    found = list(read_signatures(model, graphs))
    names = {signature.subgraph: one_line(signature.name) for signature in found}
    buffers = read_weights(model, len(data))
    codes = [_operator_code(code) for code in model.tables(1)]
    for index, (graph, tensors) in enumerate(zip(model.tables(2), graphs, strict=True)):
        uses = _uses(graph, codes)
        where = names.get(index, one_line(section.model_type))
        for number, tensor in enumerate(tensors):
            begin, size = pick(buffers, tensor.number(2, "<I"))
            if not size:
                continue
            place = (section.begin + begin, size)
            if place not in stored:
                stored[place] = _describe(tensor, size, section.model_type)
            entry = stored[place]
            entry.scale_bytes.update(_scale_bytes(tensor, section.begin))
            entry.used_by[where] = None
            if len(entry.shape) > 1:  # scales of rows are looked up, too
                entry.uses.update(dict.fromkeys(uses.get(number, ())))
    signatures += [_signature(each, one_line(section.model_type)) for each in found]


def _describe(tensor: Table, size: int, model_type: str) -> _Stored:
    name = one_line(tensor.string(3))
    prefix = DRAFTER_PREFIX if model_type == _DRAFTER else ""
    spec = read_spec(tensor)
    return _Stored(prefix + name, spec.dtype, spec.shape, size)


def _weight(entry: _Stored) -> Weight:
    return Weight(
        name=entry.name,
        dtype=entry.dtype,
        group_size=0,  # this format has one scale per row, or blocks that nobody writes here
        shape=entry.shape,
        size_bytes=entry.size_bytes,
        scale_bytes=sum(entry.scale_bytes.values()),
        uses=tuple(sorted(entry.uses)),
        used_by=tuple(entry.used_by),
    )


def _operator_code(code: Table) -> int:
    return max(code.number(0, "<b"), code.number(3, "<i"))


def _uses(graph: Table, codes: list[int]) -> dict[int, set[Use]]:
    """Tensor number -> what reads it, also through a DEQUANTIZE of constants."""
    uses: dict[int, set[Use]] = {}
    copies: dict[int, int] = {}
    for operator in graph.tables(3):
        code = pick(codes, operator.number(0, "<I"))
        inputs = operator.numbers(1, "<i", _MAX_ARGUMENTS)
        if code == _DEQUANTIZE and inputs:
            copies.update(dict.fromkeys(operator.numbers(2, "<i", 1), inputs[0]))
        position, use = _USES.get(code, (0, None))
        if use and len(inputs) > 1:
            weight = inputs[position]
            uses.setdefault(copies.get(weight, weight), set()).add(use)
    return uses


def _scale_bytes(tensor: Table, begin: int) -> dict[int, int]:
    """Where this tensor's scales lie: several tensors may share them, or have their own."""
    quantization = tensor.table(4)
    if quantization is None:
        return {}
    vectors = [(quantization.vector(field, size), size) for field, size in ((2, 4), (3, 8))]
    return {begin + start: size * length for (start, length), size in vectors if length}


def _signature(found: TfliteSignature, where: str) -> Signature:
    inputs, outputs = (
        tuple(_value(name, spec) for name, spec in specs.items())
        for specs in (found.inputs, found.outputs)
    )
    return Signature(name=one_line(found.name), where=where, inputs=inputs, outputs=outputs)


def _value(name: str, spec: TensorSpec) -> Value:
    shape = (size if size >= 0 else None for size in spec.shape)
    return Value(one_line(name), spec.dtype, tuple(shape))


def _kv(signatures: list[Signature]) -> tuple[KvBuffer, ...]:
    """Those of decode: every other signature has the same."""
    decode = next((s for s in signatures if s.name == "decode"), None)
    inputs = decode.inputs if decode else ()
    # Values lie by row or by column; the mask [1, 1, T, C] says how many rows there are.
    masks = [value.shape[-1] for value in inputs if value.name == "mask" and value.shape]
    num_rows = max(1, masks[0] or 1) if masks else 1
    buffers = []
    for value in inputs:
        if _KV_NAME.fullmatch(value.name):
            row_bytes = value.size_bytes // num_rows
            buffers.append(
                KvBuffer(name=value.name, dtype=value.dtype, num_rows=num_rows, row_bytes=row_bytes)
            )
    return tuple(buffers)
