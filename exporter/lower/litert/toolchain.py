"""The pinned conversion tools, and the two places where their private behaviour is used."""

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from exporter.errors import ExportError

# The virtual-weight road below leans on private behaviour of exactly these releases. A new release
# is admitted here once tests/exporter/lower/litert/test_oracle.py passes with it.
PACKAGES = ("litert-torch", "litert-converter", "ai-edge-litert", "litert-lm-builder")

EXTERNAL_GROUP = "virtual_weights"
RESOURCE_NAME = "gemma_export_weight"
RESOURCE_PATTERN = re.compile(rf"dense_resource<{RESOURCE_NAME}_(\d+)_(?:_\d+)?>")


@contextmanager
def quiet() -> Iterator[None]:
    """litert-torch prints its progress to stdout, which belongs to results, and warns of itself."""
    variable = "LITERT_TORCH_SHOW_PROGRESS"
    before = os.environ.get(variable)
    os.environ[variable] = "n"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


@contextmanager
def virtual_constants(numbers: Mapping[int, int]) -> Iterator[None]:
    """Lower virtual parameters to constants of the true type without their bytes.

    Args:
        numbers: address of a virtual parameter's storage -> the number of its weight.

    A registered lowering of the converter is replaced for the time of the context; every tensor
    whose storage is not in `numbers` goes through the original. The blob of a constant is 16 bytes
    under a key that carries the number; the converter does not check its size.
    """
    from litert_converter.mlir import ir
    from litert_torch.backend import inline_consts, lowerings
    from litert_torch.backend.lowerings import utils

    registry = lowerings.registry.global_registry
    placeholder = inline_consts.tensor_lowering_placeholder
    original = registry.lookup(placeholder)
    if original is not inline_consts.tensor_lowering_placeholder_lowering:
        raise ExportError(
            "lowering to LiteRT: somebody else replaced litert-torch's constant lowering; "
            "export in a fresh process"
        )
    attributes: dict[int, Any] = {}
    blobs: list[Any] = []  # the attributes point into them

    def lower_constant(context: Any, tensor: torch.Tensor) -> Any:
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


def externalize(module_operation: Any) -> None:
    """Replace every virtual constant of a converted module by tfl.external_const.

    The writer then emits Tensor.externalBuffer, whose record carries the weight's number as its
    offset. With the constants left in place a large model throws while it is written.
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
            # Identity is the resource key: locations do not survive the merging of constants.
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
