"""The graphs as the official runtime calls them: names, order and layout of every tensor."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.config import GraphShapes
from exporter.graph.drafter import Drafter
from exporter.graph.primitives import Primitives
from exporter.graph.spec import LayerSpec, TargetSpec
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.lower.litert.kv_cache import (
    FlatCache,
    Window,
    drafter_window,
    kv_shapes,
    target_window,
)
from exporter.lower.litert.operators import mean_square, top_k_indices
from exporter.lower.litert.vendor import Signature

OFFICIAL_VERIFY_WIDTH = 4  # what the official runtime's "verify" signature has
KV_PREFIX = "kv_cache_"

KVTensors = Mapping[str, Tensor]  # "k_0", "v_0", ...: the converter puts the argument's name before


def verify_name(width: int) -> str:
    """The signature that verifies `width` tokens."""
    return "verify" if width == OFFICIAL_VERIFY_WIDTH else f"verify_{width}"


PRIMITIVES = Primitives(mean_square=mean_square, top_k_indices=top_k_indices)


class EmbedderGraph(nn.Module):
    """token_ids -> embeddings, for the target's table and for the per-layer one."""

    def __init__(self, embedder: Embedder | PerLayerEmbedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, token_ids: Tensor) -> dict[str, Tensor]:
        return {"embeddings": self.embedder(token_ids)}


class TargetGraph(nn.Module):
    """Decode and verify: one call over T tokens."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(
        self,
        embeddings: Tensor,
        input_pos: Tensor,
        mask: Tensor,
        kv_cache: KVTensors,
        per_layer_embeddings: Tensor | None = None,
    ) -> dict[str, Any]:
        kv = _cache(kv_cache, target_window(self.target.spec, input_pos))
        logits, activations = self.target(embeddings, per_layer_embeddings, input_pos, mask, kv)
        return {"logits": logits, "activations": activations, "kv_cache": _tensors(kv)}


class PrefillGraph(nn.Module):
    """Prefill: writes KV rows and makes no logits."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(
        self,
        embeddings: Tensor,
        input_pos: Tensor,
        mask: Tensor,
        kv_cache: KVTensors,
        per_layer_embeddings: Tensor | None = None,
    ) -> dict[str, Any]:
        kv = _cache(kv_cache, target_window(self.target.spec, input_pos))
        self.target.fill(embeddings, per_layer_embeddings, input_pos, mask, kv)
        return {"kv_cache": _tensors(kv)}


class DrafterGraph(nn.Module):
    """One draft step over the donors' KV, which carries the target's names."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__()
        self.drafter = drafter

    def forward(
        self, activations: Tensor, input_pos: Tensor, mask: Tensor, kv_cache: KVTensors
    ) -> dict[str, Tensor]:
        kv = _cache(kv_cache, drafter_window(self.drafter.spec, input_pos))
        logits, projected = self.drafter(activations, input_pos, mask, kv)
        return {"logits": logits, "projected_activations": projected}


def embedder_signature(embedder: Embedder | PerLayerEmbedder, name: str) -> Signature:
    sample = {"token_ids": torch.zeros(1, 1, dtype=torch.int32)}
    return Signature(name, EmbedderGraph(embedder), sample)


def target_signatures(target: Target, shapes: GraphShapes) -> list[Signature]:
    """prefill_N …, decode, verify …, all over the weights of one Target."""
    step, prefill = TargetGraph(target), PrefillGraph(target)
    widths = {"decode": 1} | {verify_name(width): width for width in shapes.verify_widths}
    fills = {f"prefill_{length}": length for length in shapes.prefill_lengths}
    return [
        Signature(name, module, _target_sample(target.spec, length, shapes.cache_length))
        for module, calls in ((prefill, fills), (step, widths))
        for name, length in calls.items()
    ]


def drafter_signature(drafter: Drafter, target: TargetSpec, shapes: GraphShapes) -> Signature:
    spec, length = drafter.spec, shapes.cache_length
    donors = [target.layers[index] for index in spec.donors.values()]
    sample = {
        "activations": _zeros(1, 1, 2 * spec.target_hidden_size),
        "input_pos": torch.zeros(1, dtype=torch.int32),
        "mask": _zeros(1, 1, 1, length),
        "kv_cache": _kv_sample(donors, length),
    }
    return Signature("mtp_drafter", DrafterGraph(drafter), sample)


def _target_sample(spec: TargetSpec, num_tokens: int, cache_length: int) -> dict[str, Any]:
    sample: dict[str, Any] = {
        "embeddings": _zeros(1, num_tokens, spec.hidden_size),
        "input_pos": torch.arange(num_tokens, dtype=torch.int32),
        "mask": _zeros(1, 1, num_tokens, cache_length),
        "kv_cache": _kv_sample(spec.layers, cache_length),
    }
    if spec.per_layer_size:
        shape = (1, num_tokens, len(spec.layers), spec.per_layer_size)
        sample["per_layer_embeddings"] = _zeros(*shape)
    return sample


def _kv_sample(layers: tuple[LayerSpec, ...] | list[LayerSpec], length: int) -> dict[str, Tensor]:
    return {
        name.removeprefix(KV_PREFIX): _zeros(*shape)
        for name, shape in kv_shapes(layers, length).items()
    }


def _zeros(*shape: int) -> Tensor:
    """A sample whose numbers nobody reads: unlike torch.zeros, it takes no memory until then.

    The KV rows of E2B's signatures would be 0.9 GB at a context of 4096.
    """
    return torch.from_numpy(np.zeros(shape, np.float32))


def _cache(tensors: KVTensors, window: Window) -> FlatCache:
    return FlatCache({KV_PREFIX + name: t for name, t in tensors.items()}, window)


def _tensors(cache: FlatCache) -> dict[str, Tensor]:
    return {name.removeprefix(KV_PREFIX): tensor for name, tensor in cache.tensors.items()}
