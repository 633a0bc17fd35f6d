"""The parts of target and drafter. Parameters start on the meta device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from exporter.graph.kv_cache import KVCache
from exporter.graph.primitives import Primitives, gelu_tanh
from exporter.graph.spec import Kind, LayerSpec, RopeSpec

Rotation = tuple[Tensor, Tensor]  # cos and sin, [T, 1, E / 2] each


@dataclass(frozen=True, kw_only=True)
class Step:
    """What every layer of one call shares."""

    input_pos: Tensor  # [T]
    rotations: Mapping[Kind, Rotation]
    masks: Mapping[Kind, Tensor | None]  # [1, 1, T, C] each, additive; None: the cache knows
    kv: KVCache


def meta_parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class Linear(nn.Module):
    """x [..., I] -> [..., O], no bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = meta_parameter(out_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)

    def rows(self, indices: Tensor) -> Tensor:
        """indices [N] -> rows [N, I] of the weight: a head that is also an embedding table."""
        return nn.functional.embedding(indices, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension; `scaled=False` has no weight."""

    def __init__(
        self, size: int, eps: float, primitives: Primitives, *, scaled: bool = True
    ) -> None:
        super().__init__()
        self.weight = meta_parameter(size) if scaled else None
        self.eps = eps
        self.size = size
        self.mean_square = primitives.mean_square

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(self.mean_square(x) + self.eps)
        return normed if self.weight is None else normed * self.weight


class Rope(nn.Module):
    """Positions -> rotation. Computed in the graph, so no table grows with the context."""

    frequencies: Tensor

    def __init__(self, spec: RopeSpec) -> None:
        super().__init__()
        turning = torch.arange(0, 2 * spec.num_turning, 2, dtype=torch.float32) / spec.head_dim
        still = torch.zeros(spec.head_dim // 2 - spec.num_turning)
        frequencies = torch.cat((1.0 / (spec.theta**turning), still)) / spec.factor
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, input_pos: Tensor) -> Rotation:
        angles = input_pos.to(torch.float32).reshape(-1, 1, 1) * self.frequencies  # [T, 1, E / 2]
        return torch.cos(angles), torch.sin(angles)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn x [1, T, H, E]; element i pairs with element i + E / 2."""
    cos, sin = rotation
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Attention over a KV cache; a layer that owns no rows has no key and value projections.

    A layer that owns rows writes them with `write` before it attends.
    """

    def __init__(
        self, layer: LayerSpec, hidden_size: int, eps: float, primitives: Primitives
    ) -> None:
        super().__init__()
        self._layer = layer
        queries, kv = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
        self.q_proj = Linear(hidden_size, queries)
        self.q_norm = RMSNorm(layer.head_dim, eps, primitives)
        if layer.owns_kv:
            self.k_proj = Linear(hidden_size, kv)
            self.k_norm = RMSNorm(layer.head_dim, eps, primitives)
            self.v_proj = None if layer.values_from_keys else Linear(hidden_size, kv)
            self.v_norm = RMSNorm(layer.head_dim, eps, primitives, scaled=False)
        self.o_proj = Linear(queries, hidden_size)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        rotation, mask = step.rotations[self._layer.kind], step.masks[self._layer.kind]
        queries = rotate(self.q_norm(self._split(self.q_proj(x))), rotation)  # [1, T, H, E]
        mixed = step.kv.attend(self._layer.kv_source, queries, mask)
        joined = mixed.reshape(1, x.shape[1], -1)  # [1, T, H * E]
        return cast(Tensor, self.o_proj(joined))

    def write(self, x: Tensor, step: Step) -> None:
        keys = self._split(self.k_proj(x))  # [1, T, G, E]
        values = keys if self.v_proj is None else self._split(self.v_proj(x))
        keys = rotate(self.k_norm(keys), step.rotations[self._layer.kind])  # [1, T, G, E]
        step.kv.write(self._layer.index, keys, self.v_norm(values), step.input_pos)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(1, x.shape[1], -1, self._layer.head_dim)


class FeedForward(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(gelu_tanh(self.gate_proj(x)) * self.up_proj(x)))
