"""Convert modules with virtual weights to a .tflite without the weights."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from exporter.errors import ExportError
from exporter.lower.litert.vendor import Signature, write_skeleton

logger = logging.getLogger(__name__)


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
    started = time.monotonic()
    names = list(weights)
    numbers = {weights[name].untyped_storage().data_ptr(): i for i, name in enumerate(names)}
    if len(numbers) != len(names):
        raise ExportError(f"{path.name}: two virtual weights share one storage; give each its own")
    write_skeleton(signatures, numbers, path)
    logger.debug(
        "%s: %d signatures, %d weights, %.0f s",
        path.name,
        len(signatures),
        len(names),
        time.monotonic() - started,
    )
    return names
