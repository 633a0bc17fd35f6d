"""The plain KV cache, which the lowerings' own are compared with."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from exporter.graph.spec import LayerSpec

KEY_ROWS_DIM = 2
VALUE_ROWS_DIM = 3


class TensorCache:
    """A KVCache in which a write replaces the entry.

    Layout: kv_cache_k_{i} [1, G, C, E] and kv_cache_v_{i} [1, G, E, C].
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def write(self, layer: int, keys: Tensor, values: Tensor, input_pos: Tensor) -> None:
        start = input_pos[0]
        k, v = key_name(layer), value_name(layer)
        rows = keys.transpose(1, 2)  # [1, G, T, E]
        self.tensors[k] = _replace_rows(self.tensors[k], rows, start, KEY_ROWS_DIM)
        columns = values.transpose(1, 2).transpose(2, 3)  # [1, G, E, T]
        self.tensors[v] = _replace_rows(self.tensors[v], columns, start, VALUE_ROWS_DIM)

    def attend(self, layer: int, queries: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is not None, "a TensorCache does not know which rows are committed"
        keys, values = self.tensors[key_name(layer)], self.tensors[value_name(layer)]
        mixed = grouped_attention(queries.transpose(1, 2), keys, values, mask)
        return mixed.transpose(1, 2)


def grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention with scale 1 in which nothing is repeated for the query heads of a KV group.

    Args:
        queries: [1, H, T, E]; the H / G heads of a KV head are adjacent.
        keys: [1, G, C, E].
        values: [1, G, E, C].
        mask: [1, 1, T, C], added to the scores.

    Returns:
        [1, H, T, E].
    """
    _, num_heads, num_tokens, head_dim = queries.shape
    num_kv_heads, num_rows = keys.shape[1], keys.shape[2]
    folded = queries.reshape(1, num_kv_heads, -1, head_dim)  # [1, G, (H / G) * T, E]
    scores = torch.einsum("agme,agce->agmc", folded, keys)
    scores = scores.reshape(1, num_heads, num_tokens, num_rows) + mask
    shares = torch.softmax(scores, dim=-1).reshape(1, num_kv_heads, -1, num_rows)
    mixed = torch.einsum("agmc,agec->agme", shares, values)  # [1, G, (H / G) * T, E]
    return mixed.reshape(1, num_heads, num_tokens, head_dim)


def _replace_rows(buffer: Tensor, rows: Tensor, start: Tensor, dim: int) -> Tensor:
    positions = start + torch.arange(rows.shape[dim], dtype=start.dtype)
    return buffer.index_copy(dim, positions.long(), rows)


def key_name(layer: int) -> str:
    return f"kv_cache_k_{layer}"


def value_name(layer: int) -> str:
    return f"kv_cache_v_{layer}"


def kv_shapes(layers: Iterable[LayerSpec], cache_length: int) -> dict[str, tuple[int, ...]]:
    """The KV tensors the owning layers among `layers` need, by name, in layer order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        if layer.owns_kv:
            heads, size = layer.num_kv_heads, layer.head_dim
            shapes[key_name(layer.index)] = (1, heads, cache_length, size)
            shapes[value_name(layer.index)] = (1, heads, size, cache_length)
    return shapes


def empty_kv(layers: Iterable[LayerSpec], cache_length: int) -> dict[str, Tensor]:
    """Zeroed KV tensors: rows not yet written must be finite, since 0 * nan is nan."""
    return {name: torch.zeros(shape) for name, shape in kv_shapes(layers, cache_length).items()}
