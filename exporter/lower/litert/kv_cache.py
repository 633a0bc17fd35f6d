"""Flat KV buffers, written in place, and attention that neither repacks nor reads all of them.

XNNPACK packs the right-hand side of every BATCH_MATMUL in each call and streams the left-hand side.
So with few query tokens, keys and values stand on the left. Sliding layers read a copy of the
window's rows: the copy is small, and rows outside of it cost nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.graph.masks import MASKED
from exporter.graph.spec import DrafterSpec, LayerSpec, TargetSpec
from exporter.lower.litert.operators import batch_matmul, gather, update_slice

KEY_ROWS_DIM = 2
# From this many query tokens on, packing is the smaller part and streaming no faster.
PACKED_TOKENS = 17
# XNNPACK's softmax adds up to 64 numbers at once. Where windows begin and end on multiples of 64,
# it adds a row of scores in the same order whatever the call's width.
ROW_MULTIPLE = 64


@dataclass(frozen=True)
class Window:
    """The rows that sliding layers read in one call; the mask hides those that are not needed."""

    layers: frozenset[int]  # the target layers they belong to
    first: Tensor  # [1] int32, the first row that is needed; below 0 near the start
    num_rows: int  # how many are needed

    @property
    def length(self) -> int:
        """Rows read: enough wherever `first` lies between two multiples."""
        return -(-(self.num_rows + ROW_MULTIPLE - 1) // ROW_MULTIPLE) * ROW_MULTIPLE


def target_window(spec: TargetSpec, input_pos: Tensor) -> Window:
    """The rows that the tokens at input_pos [T] see together."""
    sliding = {layer.index for layer in spec.kv_layers if layer.kind == "sliding_attention"}
    before = spec.sliding_window - 1
    return Window(frozenset(sliding), input_pos[:1] - before, before + input_pos.shape[0])


def drafter_window(spec: DrafterSpec, input_pos: Tensor) -> Window:
    """The last window + 1 of the committed rows; input_pos [1] is their number."""
    sliding = {donor for kind, donor in spec.donors.items() if kind == "sliding_attention"}
    num_rows = spec.sliding_window + 1
    return Window(frozenset(sliding), input_pos - num_rows, num_rows)


class FlatCache:
    """The KVCache of one call; a write replaces the entry, and a runtime binds both to one buffer.

    Layout: kv_cache_k_{i} [1, G, C, E]; kv_cache_v_{i} [1, G, E, C], for streaming, but
    [1, G, C, E] in sliding layers, for copying rows. The official runtime takes any layout.
    """

    def __init__(self, tensors: Mapping[str, Tensor], window: Window) -> None:
        self.tensors = dict(tensors)
        self._window = window

    def write(self, layer: int, keys: Tensor, values: Tensor, input_pos: Tensor) -> None:
        """Store keys and values [1, T, G, E] at the consecutive rows input_pos [T]."""
        start = input_pos[0]
        k, v = row_names(layer)
        self.tensors[k] = update_slice(self.tensors[k], keys.transpose(1, 2), start, KEY_ROWS_DIM)
        values = values.transpose(1, 2)  # [1, G, T, E]
        if layer in self._window.layers:
            self.tensors[v] = update_slice(self.tensors[v], values, start, KEY_ROWS_DIM)
        else:
            self.tensors[v] = update_slice(self.tensors[v], values.transpose(2, 3), start, 3)

    def attend(self, layer: int, queries: Tensor, mask: Tensor | None) -> Tensor:
        """Queries [1, T, H, E], mask [1, 1, T, C] -> [1, T, H, E]."""
        assert mask is not None, "flat buffers do not know which rows are committed"
        keys, values = (self.tensors[name] for name in row_names(layer))
        sliding = layer in self._window.layers
        if sliding and self._window.length < mask.shape[-1]:
            keys, values, mask = self._windowed(keys, values, mask)
        shares = _shares(queries, keys, mask)
        if sliding:
            return _mix_rows(shares, values)
        return _mix_columns(shares, values)

    def _windowed(self, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """The rows of the window; the converter merges copies of layers that share a donor."""
        num_rows, length = mask.shape[-1], self._window.length
        last = -(-(num_rows - length) // ROW_MULTIPLE) * ROW_MULTIPLE
        first = torch.clamp(self._window.first, 0, last)  # [1]
        first = first - torch.remainder(first, ROW_MULTIPLE)
        rows = first + torch.arange(length, dtype=torch.int32)
        if num_rows % ROW_MULTIPLE == 0:
            return gather(keys, rows, 2), gather(values, rows, 2), gather(mask, rows, 3)
        present = torch.clamp(rows, max=num_rows - 1)
        past_the_end = torch.where(rows < num_rows, 0.0, MASKED)
        hidden = gather(mask, present, 3) + past_the_end
        return gather(keys, present, 2), gather(values, present, 2), hidden


def kv_shapes(layers: Iterable[LayerSpec], cache_length: int) -> dict[str, tuple[int, ...]]:
    """The KV tensors the owning layers among `layers` need, by name, in layer order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        if layer.owns_kv:
            heads, size = layer.num_kv_heads, layer.head_dim
            by_row, by_column = (1, heads, cache_length, size), (1, heads, size, cache_length)
            k, v = row_names(layer.index)
            shapes[k] = by_row
            shapes[v] = by_row if layer.kind == "sliding_attention" else by_column
    return shapes


def _shares(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Queries [1, T, H, E], keys [1, G, rows, E], mask [1, 1, T, rows] -> [1, H, T, rows].

    The scale is 1, and the H / G heads of a KV head are adjacent; nothing is repeated for them.
    """
    _, num_tokens, num_heads, _ = queries.shape
    folded = _folded(queries.transpose(1, 2), keys.shape[1])  # [1, G, M, E]
    scores = _product(folded, keys, num_tokens).reshape(1, num_heads, num_tokens, -1)
    return torch.softmax(scores + mask, dim=-1)


def _mix_columns(shares: Tensor, values: Tensor) -> Tensor:
    """Shares [1, H, T, rows], values [1, G, E, rows] -> [1, T, H, E]."""
    num_kv_heads, num_tokens = values.shape[1], shares.shape[2]
    mixed = _product(_folded(shares, num_kv_heads), values, num_tokens)
    return _unfolded(mixed, num_kv_heads, num_tokens)


def _mix_rows(shares: Tensor, values: Tensor) -> Tensor:
    """Shares [1, H, T, rows], values [1, G, rows, E] -> [1, T, H, E]."""
    num_kv_heads, num_tokens = values.shape[1], shares.shape[2]
    mixed = batch_matmul(_folded(shares, num_kv_heads), values)
    return _unfolded(mixed, num_kv_heads, num_tokens)


def _folded(x: Tensor, num_kv_heads: int) -> Tensor:
    """[1, H, T, N] -> [1, G, M, N], where M is (H / G) * T."""
    return x.reshape(1, num_kv_heads, -1, x.shape[-1])


def _unfolded(x: Tensor, num_kv_heads: int, num_tokens: int) -> Tensor:
    """As many elements as [1, G, M, E] -> [1, T, H, E].

    For one token and several KV heads a reshape would do. But the converter would merge it with
    those around the next product, which then has two dimensions, and leave a reshape between the
    square and the mean of the norm behind it.
    """
    if num_tokens == 1 and num_kv_heads > 1:
        by_head = x.reshape(1, num_kv_heads, -1, x.shape[-1])
        heads = [by_head[:, i : i + 1] for i in range(num_kv_heads)]
        return torch.cat(heads, dim=2)
    num_heads = x.numel() // (num_tokens * x.shape[-1])
    return x.reshape(1, num_heads, num_tokens, -1).transpose(1, 2)


def _product(few: Tensor, many: Tensor, num_tokens: int) -> Tensor:
    """few [1, G, M, K] times many [1, G, N, K] transposed: as many elements as [1, G, M, N]."""
    if num_tokens >= PACKED_TOKENS:
        return batch_matmul(few, many, transposed=True)
    product = batch_matmul(many, few, transposed=True)  # [1, G, N, M]
    # The converter folds a plain transpose into the product and swaps its sides back; so heads and
    # tokens are permuted apart from each other.
    split = product.reshape(many.shape[1], many.shape[2], -1, num_tokens)
    return split.permute(0, 2, 3, 1)  # [G, H / G, T, N]


def row_names(layer: int) -> tuple[str, str]:
    """The names of a layer's keys and values."""
    return f"kv_cache_k_{layer}", f"kv_cache_v_{layer}"
