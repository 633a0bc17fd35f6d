"""The fence around LiteRT's tools: private parts of theirs are used here and nowhere else.

pyproject.toml pins litert-torch, litert-converter, ai-edge-litert and litert-lm-builder. A new
release is admitted once tests/exporter/lower/litert/test_oracle.py passes with it. Imports stand in
the functions: the tools take seconds to load, which exports to other runtimes need not pay.
"""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.errors import ExportError
from exporter.quiet import TORCHAO, only_errors

PACKAGES = ("litert-torch", "litert-converter", "ai-edge-litert", "litert-lm-builder")

_NATIVE_LOG = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
_PROGRESS = "LITERT_TORCH_SHOW_PROGRESS"
EXTERNAL_GROUP = "virtual_weights"
RESOURCE_NAME = "gemma_export_weight"
RESOURCE_PATTERN = re.compile(rf"dense_resource<{RESOURCE_NAME}_(\d+)_(?:_\d+)?>")


@dataclass(frozen=True)
class Signature:
    """One entry point of a .tflite; sample names become tensor names, nested ones joined by "_"."""

    name: str
    module: nn.Module
    sample: Mapping[str, Any]  # tensors, or a dict of tensors, by argument name


def write_skeleton(signatures: Sequence[Signature], numbers: Mapping[int, int], path: Path) -> None:
    """Convert the signatures to a .tflite without the weights that have a number.

    Args:
        signatures: entry points; they share the weights that are the same Parameter.
        numbers: address of a virtual parameter's storage -> the number of its weight. The file
            has the number + 1 as the offset of an external buffer.
        path: the file to write.
    """
    with quiet():
        import litert_torch

        converter: Any = litert_torch
        for signature in signatures:
            converter = converter.signature(
                signature.name, signature.module.eval(), sample_kwargs=dict(signature.sample)
            )
        with virtual_constants(numbers):
            model = converter.convert(strict_export=False, runtime_constant_folding=False)
            _externalize(model._exporter._module_op)
            model.export(str(path))


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the tools' progress on stdout, where results go, and what users cannot act upon."""
    for variable, value in _NATIVE_LOG.items():  # read once, when the native libraries load
        os.environ.setdefault(variable, value)
    before = os.environ.get(_PROGRESS)
    os.environ[_PROGRESS] = "n"
    try:
        with only_errors(*TORCHAO), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        if before is None:
            del os.environ[_PROGRESS]
        else:
            os.environ[_PROGRESS] = before


@contextmanager
def virtual_constants(numbers: Mapping[int, int]) -> Iterator[None]:
    """Lower virtual parameters to constants of the true type without their bytes.

    Args:
        numbers: address of a virtual parameter's storage -> the number of its weight.

    The context replaces a registered lowering of the converter. Tensors whose storage is not in
    `numbers` go through the original. A virtual constant is a blob of 16 bytes under a key that
    carries the number; the converter does not check its size.
    """
    from litert_converter.mlir import ir
    from litert_torch.backend import inline_consts, lowerings
    from litert_torch.backend.lowerings import utils

    registry = lowerings.registry.global_registry
    placeholder = inline_consts.tensor_lowering_placeholder
    original = registry.lookup(placeholder)
    if original is not inline_consts.tensor_lowering_placeholder_lowering:
        raise ExportError(
            "lowering to LiteRT: other code replaced litert-torch's lowering of constants; "
            "export in a fresh process"
        )
    attributes: dict[int, Any] = {}
    blobs: list[Any] = []  # the attributes point into them

    def lower_constant(context: Any, tensor: Tensor) -> Any:
        number = numbers.get(tensor.untyped_storage().data_ptr())
        if number is None:
            return original(context, tensor)
        element = utils.torch_dtype_to_ir_element_type(tensor.dtype)
        tensor_type = ir.RankedTensorType.get(tuple(tensor.shape), element)
        if number not in attributes:
            blobs.append(np.zeros(16, np.uint8))
            attributes[number] = ir.DenseResourceElementsAttr.get_from_buffer(
                memoryview(blobs[-1]), f"{RESOURCE_NAME}_{number}_", tensor_type
            )
        return inline_consts._build_const(attributes[number], tensor_type)

    registry.register(placeholder, lower_constant)
    try:
        yield
    finally:
        registry.register(placeholder, original)


def _externalize(module_operation: Any) -> None:
    """Replace every virtual constant of a converted module by tfl.external_const.

    The writer then emits Tensor.externalBuffer, whose record has the weight's number as its
    offset. With the constants left in place, writing a large model throws.
    """
    from litert_converter.mlir import ir

    found = [
        (operation, number)
        for operation in _walk(module_operation)
        if (number := _weight_number(operation)) is not None
    ]
    with module_operation.context:
        for operation, number in found:
            result = operation.results[0]
            # The resource key identifies a weight: locations do not survive merging of constants.
            record = ir.Attribute.parse(
                f'#tfl.external_buffer<group_name = "{EXTERNAL_GROUP}", '
                f'offset = {number + 1}, length = 1, packing = "">'
            )
            external = ir.Operation.create(
                "tfl.external_const",
                results=[result.type],
                attributes={"external_buffer": record},
                loc=operation.location,
                ip=ir.InsertionPoint(operation),
            )
            result.replace_all_uses_with(external.results[0])
            operation.erase()


def _walk(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for child in block.operations:
                yield child.operation
                yield from _walk(child.operation)


def _weight_number(operation: Any) -> int | None:
    if operation.name not in ("arith.constant", "tfl.pseudo_const"):
        return None
    value = operation.attributes["value"]
    # str() of an ordinary constant spells out all its elements: ask for the kind first.
    if type(value).__name__ not in ("Attribute", "DenseResourceElementsAttr"):
        return None
    match = RESOURCE_PATTERN.match(str(value))
    return int(match[1]) if match else None


def dynamic_update_slice(buffer: Tensor, rows: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """tfl.dynamic_update_slice: `buffer` with `rows` at `starts`, one scalar per dimension."""
    from litert_torch.generative.custom_ops import dynamic_update_slice as custom

    updated: Tensor = custom.dynamic_update_slice(buffer, rows, starts)
    return updated


def tfl() -> Any:
    """torch.ops.tfl, LiteRT's own operators in torch."""
    from litert_torch.backend.experimental import torch_tfl  # noqa: F401  registers them

    return torch.ops.tfl


def schema() -> Any:
    """The classes and constants of a .tflite, generated from schema.fbs of LiteRT."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def read_model(path: Path) -> Any:
    """A .tflite as a ModelT of `schema()`."""
    return schema().ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def model_bytes(model: Any) -> bytearray:
    """A ModelT as the flatbuffer of a .tflite."""
    from ai_edge_litert.tools import flatbuffer_utils

    packed: bytearray = flatbuffer_utils.convert_object_to_bytearray(model)
    return packed


def shared_quantization(num_rows: int) -> Any:
    """A QuantizationParametersT that several tensors share, in memory and in the file.

    Every signature has a tensor of its own for a weight. Scales and zero points written for each
    would be 80 MB for E2B; in a flatbuffer several tables may refer to one.
    """
    shared: Any = schema().QuantizationParametersT()
    shared.scale = np.ones(num_rows, np.float32)
    shared.zeroPoint = np.zeros(num_rows, np.int64)
    shared.quantizedDimension = 0
    pack = shared.Pack
    last: list[Any] = [None, 0]  # builder, and the position at which it has them

    def pack_once(builder: Any) -> int:
        if last[0] is not builder:
            last[:] = builder, pack(builder)
        return int(last[1])

    shared.Pack = pack_once
    return shared


def bundle_builder() -> Any:
    """The module litert_lm_builder, which writes .litertlm files."""
    import litert_lm_builder

    return litert_lm_builder


def llm_metadata() -> Any:
    """An empty LlmMetadata message."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    return llm_metadata_pb2.LlmMetadata()


def top_p() -> int:
    """The type TOP_P of the sampler in an LlmMetadata."""
    from litert_lm_builder.runtime.proto import sampler_params_pb2

    return int(sampler_params_pb2.SamplerParameters.TOP_P)
