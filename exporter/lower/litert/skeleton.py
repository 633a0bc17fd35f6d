"""Modules with virtual weights -> a .tflite that has everything but the weights."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from exporter.errors import ExportError
from exporter.lower.litert.toolchain import (
    externalize,
    quiet,
    virtual_constants,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Signature:
    """One entry point of a .tflite; sample names become tensor names, nested ones joined by "_"."""

    name: str
    module: nn.Module
    sample: Mapping[str, Any]  # tensors, or a dict of tensors, by argument name


def convert(
    signatures: Sequence[Signature], weights: Mapping[str, nn.Parameter], path: Path
) -> list[str]:
    """Write the skeleton of a .tflite.

    Args:
        signatures: entry points; they share the weights that are the same Parameter.
        weights: every virtual parameter of their modules by its tensor name, each once.
        path: the file to write.

    Returns:
        The names by weight number, as `inject` needs them.
    """
    import litert_torch

    started = time.monotonic()
    names = list(weights)
    numbers = {weights[name].untyped_storage().data_ptr(): i for i, name in enumerate(names)}
    if len(numbers) != len(names):
        raise ExportError(f"{path.name}: two virtual weights share one storage; give each its own")
    converter: Any = litert_torch
    for signature in signatures:
        converter = converter.signature(
            signature.name, signature.module.eval(), sample_kwargs=dict(signature.sample)
        )
    with quiet(), virtual_constants(numbers):
        model = converter.convert(strict_export=False, runtime_constant_folding=False)
        externalize(model._exporter._module_op)
        model.export(str(path))
    logger.debug(
        "%s: %d signatures, %d weights, %.0f s",
        path.name,
        len(signatures),
        len(names),
        time.monotonic() - started,
    )
    return names
