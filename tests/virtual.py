"""Checkpoints that have shapes and no numbers: of any size, at once."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from exporter.checkpoint.config import parse_drafter, parse_target
from exporter.graph.drafter import Drafter
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.graph.weights import expected_tensors
from tests.make_checkpoint import SIZES, drafter_config, target_config


class Virtual:
    """What a Checkpoint says of its tensors."""

    def __init__(self, spec: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.spec = spec
        self._shapes = shapes

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def packed(self, _name: str) -> None:
        """No integers of its own."""


def virtual_pair(
    size: str, num_layers: int | None = None, vocab_size: int | None = None
) -> tuple[Virtual, Virtual]:
    """The target and the drafter that tests.make_checkpoint would write."""
    made = SIZES[size].reduced(num_layers, vocab_size)
    spec = parse_target(target_config(made), size)
    modules: list[nn.Module] = [Embedder(spec), Target(spec)]
    if spec.per_layer_size:
        modules.append(PerLayerEmbedder(spec))
    drafter = parse_drafter(drafter_config(made), f"{size}'s drafter", spec)
    return (
        Virtual(spec, expected_tensors(modules)),
        Virtual(drafter, expected_tensors([Drafter(drafter)])),
    )
