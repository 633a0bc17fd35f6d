"""The graph run eagerly in torch, call by call, as a runtime would."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.graph.drafter import Drafter
from exporter.graph.primitives import DEFAULT, Primitives
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.graph.weights import load_weights
from exporter.quantize import KvRange
from tests.exporter.graph.tensor_cache import TensorCache, empty_kv


def causal_mask(input_pos: Tensor, cache_length: int, masked: float = -torch.inf) -> Tensor:
    """[1, 1, T, C]: what a runtime hands in."""
    rows = torch.arange(cache_length).reshape(1, 1, 1, -1)
    return torch.where(rows <= input_pos.reshape(1, 1, -1, 1), 0.0, masked)


class RoundedCache(TensorCache):
    """The plain cache with the numbers that int8 rows have."""

    def __init__(self, tensors: Mapping[str, Tensor], ranges: Mapping[int, KvRange]) -> None:
        super().__init__(tensors)
        self._ranges = ranges

    def write(self, layer: int, keys: Tensor, values: Tensor, input_pos: Tensor) -> None:
        found = self._ranges[layer]
        keys, values = rounded(keys, found.key_scale), rounded(values, found.value_scale)
        super().write(layer, keys, values, input_pos)


def rounded(x: Tensor, scale: float) -> Tensor:
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


class EagerModel:
    """Target and drafter over one KV cache; with `kv_ranges`, rows have int8 numbers."""

    def __init__(
        self,
        target_folder: Path,
        drafter_folder: Path,
        cache_length: int,
        primitives: Primitives = DEFAULT,
        kv_ranges: Mapping[int, KvRange] | None = None,
    ) -> None:
        self._kv_ranges = kv_ranges
        self.checkpoint = read_checkpoint(target_folder)
        self.drafter_checkpoint = read_drafter(drafter_folder, self.checkpoint)
        self.spec = self.checkpoint.spec
        self.cache_length = cache_length
        self.embedder = Embedder(self.spec)
        self.per_layer_embedder = PerLayerEmbedder(self.spec) if self.spec.per_layer_size else None
        self.target = Target(self.spec, primitives)
        self.drafter = Drafter(self.drafter_checkpoint.spec, primitives)
        for module in (self.embedder, self.per_layer_embedder, self.target):
            if module is not None:
                load_weights(module, self.checkpoint, virtual=False)
        load_weights(self.drafter, self.drafter_checkpoint, virtual=False)
        self.clear()

    def clear(self) -> None:
        """Start over with an empty cache."""
        empty, ranges = empty_kv(self.spec.layers, self.cache_length), self._kv_ranges
        self.kv = TensorCache(empty) if ranges is None else RoundedCache(empty, ranges)

    def prefill(self, token_ids: Tensor, position: int) -> None:
        """Write the KV rows of token_ids [T]."""
        self.target.fill(*self._inputs(token_ids, position), self.kv)

    def verify(self, token_ids: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """token_ids [T] -> logits [T, V], activations [T, D]."""
        logits, activations = self.target(*self._inputs(token_ids, position), self.kv)
        return logits[0], activations[0]

    def draft(self, token_id: Tensor, hidden: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """token_id [], hidden [D] -> logits [V], projected activations [D]."""
        embedding = self.embedder(token_id.reshape(1, 1).int())
        activations = torch.cat((embedding, hidden.reshape(1, 1, -1)), dim=-1)
        input_pos = torch.tensor([position], dtype=torch.int32)
        mask = causal_mask(input_pos, self.cache_length)
        logits, projected = self.drafter(activations, input_pos, mask, self.kv)
        return logits[0, 0], projected[0, 0]

    def _inputs(
        self, token_ids: Tensor, position: int
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        token_ids = token_ids.reshape(1, -1).int()
        input_pos = torch.arange(position, position + token_ids.shape[1], dtype=torch.int32)
        per_layer = None if self.per_layer_embedder is None else self.per_layer_embedder(token_ids)
        mask = causal_mask(input_pos, self.cache_length)
        return self.embedder(token_ids), per_layer, input_pos, mask
