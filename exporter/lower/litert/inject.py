"""Fill a skeleton .tflite with a checkpoint's weights, a chunk of rows at a time.

The weights lie behind the flatbuffer (Buffer.offset and .size), aligned to 64 bytes. Each is stored
once, however many signatures use it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from exporter.errors import ExportError
from exporter.lower.litert.float16 import widen
from exporter.lower.litert.gathered_rows import gather_integers
from exporter.lower.litert.vendor import model_bytes, read_model, schema, shared_quantization
from exporter.quantize import RowSource, WeightType, quantize, size_bytes

logger = logging.getLogger(__name__)

ALIGNMENT = 64

OnBytes = Callable[[int], None]  # weight bytes written so far


@dataclass(frozen=True)
class Weight:
    """One weight: its name in the checkpoint, its stored type and its place in the file."""

    name: str
    weight_type: WeightType
    uses: list[Any]  # TensorT, one or more per signature
    offset: int  # from the start of the payload
    size: int  # bytes
    quantization: Any  # QuantizationParametersT that the tensors share; None for floating point


def inject(
    skeleton: Path,
    names: Sequence[str],
    source: RowSource,
    types: Mapping[str, WeightType],
    out: Path,
    on_bytes: OnBytes | None = None,
) -> None:
    """Write `out`: the skeleton's graphs with the source's weights, stored as `types` says.

    Args:
        skeleton: a file made by `convert`.
        names: what `convert` returned.
        source: the checkpoint.
        types: the stored type of every name in `names`.
        out: the file to write.
        on_bytes: called after each chunk.

    Raises:
        ExportError: if no graph reads a weight, or an operator that cannot read it does.
    """
    started = time.monotonic()
    model = read_model(skeleton)
    weights = _place(_find_uses(model, names), source, types)
    for weight in weights:
        _retype(model, weight)
    widen(model)
    scale_buffers = gather_integers(model)
    model.externalBuffers = None
    model.externalBufferGroups = None
    # The root's length does not depend on the offsets and scales in it: weights go to their places
    # before their scales are known.
    first_byte = _aligned(len(model_bytes(model)))
    with out.open("wb") as file:
        _write_weights(file, weights, source, first_byte, scale_buffers, on_bytes)
        for weight in weights:
            buffer = model.buffers[weight.uses[0].buffer]
            buffer.offset, buffer.size = first_byte + weight.offset, weight.size
        root = model_bytes(model)
        assert _aligned(len(root)) == first_byte
        file.seek(0)
        file.write(root)
    logger.debug(
        "%s: %d weights injected, %.1f MB, %.0f s",
        out.name,
        len(weights),
        out.stat().st_size / 1e6,
        time.monotonic() - started,
    )


def _find_uses(model: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    """The tensors that stand for each weight, by its name."""
    numbers = {record.id: record.offset - 1 for record in model.externalBuffers or []}
    uses: dict[str, list[Any]] = {name: [] for name in names}
    for subgraph in model.subgraphs:
        read_by = _readers(model, subgraph)
        for index, tensor in enumerate(subgraph.tensors):
            if not tensor.externalBuffer:
                continue
            name = names[numbers[tensor.externalBuffer]]
            tensor.externalBuffer = 0
            readers = read_by.get(index, set())
            _check_readers(name, readers)
            if readers:
                uses[name].append(tensor)
    missing = [name for name, tensors in uses.items() if not tensors]
    if missing:
        raise ExportError(
            f"lowering to LiteRT: no graph reads {', '.join(missing[:3])} ({len(missing)} in all): "
            "the converter dropped them; compare the modules with the checkpoint"
        )
    return uses


def _readers(model: Any, subgraph: Any) -> dict[int, set[tuple[int, int]]]:
    """Tensor index -> (operator code, input position) of each of its readers."""
    read_by: dict[int, set[tuple[int, int]]] = {}
    for operator in subgraph.operators:
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        for position, index in enumerate(operator.inputs):
            read_by.setdefault(int(index), set()).add((code, position))
    return read_by


def _check_readers(name: str, readers: set[tuple[int, int]]) -> None:
    codes = schema().BuiltinOperator
    wrong = readers - {(codes.FULLY_CONNECTED, 1), (codes.EMBEDDING_LOOKUP, 1)}
    if wrong:
        # The converter moves a factor behind a linear into its weight (MUL); it would be lost.
        operators = {code: word for word, code in vars(codes).items() if isinstance(code, int)}
        found = ", ".join(f"input {position} of {operators[code]}" for code, position in wrong)
        raise ExportError(
            f"lowering to LiteRT: weight {name} is {found}, it may only be input 1 of "
            "FULLY_CONNECTED or EMBEDDING_LOOKUP; change the graph (a constant factor belongs "
            "before the linear)"
        )


def _place(
    uses: Mapping[str, list[Any]], source: RowSource, types: Mapping[str, WeightType]
) -> list[Weight]:
    weights = []
    offset = 0
    for name, tensors in uses.items():
        shape = [int(length) for length in source.shape(name)]
        for tensor in tensors:
            found = [int(length) for length in tensor.shape]
            if found != shape:
                raise ExportError(
                    f"lowering to LiteRT: {name} has shape {found} in the graph and {shape} in "
                    "the checkpoint; they must be equal"
                )
        size = size_bytes(shape, types[name])
        quantization = shared_quantization(shape[0]) if types[name].is_integer else None
        weights.append(Weight(name, types[name], tensors, offset, size, quantization))
        offset = _aligned(offset + size)
    return weights


def _retype(model: Any, weight: Weight) -> None:
    """Give the tensors of one weight a common buffer, the stored type and room for scales."""
    types = schema().TensorType
    tensor_types = {
        32: types.FLOAT32,
        16: types.FLOAT16,
        8: types.INT8,
        4: types.INT4,
        2: types.INT2,
    }
    buffer = schema().BufferT()
    buffer.offset = buffer.size = 1  # 0 would not be written, and the root would grow later
    model.buffers.append(buffer)
    for tensor in weight.uses:
        tensor.buffer = len(model.buffers) - 1
        tensor.name = weight.name.encode()
        tensor.type = tensor_types[weight.weight_type.bits]
        if weight.quantization is not None:
            tensor.quantization = weight.quantization


def _write_weights(
    file: BinaryIO,
    weights: Sequence[Weight],
    source: RowSource,
    first_byte: int,
    scale_buffers: Mapping[bytes, Any],
    on_bytes: OnBytes | None,
) -> None:
    written = 0
    for weight in weights:
        file.seek(first_byte + weight.offset)
        scales = []
        for chunk in quantize(source, weight.name, weight.weight_type):
            file.write(chunk.data)
            scales.append(chunk.scales)
            written += len(chunk.data)
            if on_bytes is not None:
                on_bytes(written)
        assert file.tell() == first_byte + weight.offset + weight.size
        _set_scales(weight, np.concatenate(scales), scale_buffers.get(weight.name.encode()))


def _set_scales(weight: Weight, scales: npt.NDArray[np.float32], buffer: Any) -> None:
    if weight.quantization is not None:
        assert len(weight.quantization.scale) == len(scales)
        weight.quantization.scale = scales
    if buffer is not None:
        buffer.data = scales.astype("<f4").view(np.uint8)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
