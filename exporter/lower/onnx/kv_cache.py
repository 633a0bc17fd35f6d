"""KV rows, bound in and out to the same memory, and attention over the rows in use."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.graph.spec import Kind, LayerSpec
from exporter.lower.onnx.operators import (
    floor_divide,
    from_int8,
    product,
    product_with_rows,
    regroup,
    scatter_rows,
    swap_tokens_and_heads,
    to_int8,
)
from exporter.lower.onnx.vendor import promise
from exporter.quantize import KvRange

ROWS_DIM = 2
# onnxruntime adds up to 16 scores at once, and 128 or 256 products. Where views begin and end on
# multiples of these, it adds a row of numbers in the same order whatever the call's width.
ROW_MULTIPLE = 16
FIRST_ROW_MULTIPLE = 256
SUM_LENGTH = 128


def past_names(layer: int) -> tuple[str, str]:
    """Inputs, named as for onnxruntime-genai."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Outputs, likewise."""
    return f"present.{layer}.key", f"present.{layer}.value"


@dataclass(frozen=True)
class View:
    """The rows that layers of one kind read in one call; the sizes are symbolic."""

    first: int
    num_rows: int
    mask: Tensor  # [T, rows] additive


Views = Mapping[Kind, View]


@dataclass(frozen=True)
class Call:
    """What all layers of one call share."""

    positions: Tensor  # [T]
    views: Views


Rows = dict[int, tuple[Tensor, Tensor]]  # target layer -> keys, values [1, G, C, E]
KvRanges = Mapping[int, KvRange] | None  # of int8 rows; None: float32


class PresentRows:
    """The KVCache of one call: it costs what the rows in use cost, not the capacity.

    int8 rows are rounded before they are written, and widened where they are read.
    """

    def __init__(
        self, buffers: Rows, layers: tuple[LayerSpec, ...], call: Call, kv_ranges: KvRanges
    ) -> None:
        self.buffers = dict(buffers)
        self._layers = layers
        self._views = call.views
        self._positions = call.positions
        self._kv_ranges = kv_ranges
        self._indices: dict[int, Tensor] = {}
        # Layers that share a donor also share the copy of its rows.
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, keys: Tensor, values: Tensor, input_pos: Tensor) -> None:  # noqa: ARG002
        """Keys and values [1, T, G, E] into the rows of `positions`."""
        indices = self._row_indices(keys.shape[2])
        past_keys, past_values = self.buffers[layer]
        if self._kv_ranges is not None:
            found = self._kv_ranges[layer]
            keys, values = to_int8(keys, found.key_scale), to_int8(values, found.value_scale)
        self.buffers[layer] = (
            scatter_rows(past_keys, indices, swap_tokens_and_heads(keys)),
            scatter_rows(past_values, indices, swap_tokens_and_heads(values)),
        )

    def attend(self, layer: int, queries: Tensor, mask: Tensor | None) -> Tensor:
        """Queries [1, T, H, E] -> [1, T, H, E]; the view hides what must not be seen."""
        assert mask is None, "the views hide rows, not the caller's mask"
        view = self._views[self._layers[layer].kind]
        if layer not in self._seen:
            self._seen[layer] = self._viewed(layer, view)
        return _attention(queries, *self._seen[layer], view.mask)

    def _viewed(self, layer: int, view: View) -> tuple[Tensor, Tensor]:
        keys, values = (
            buffer.narrow(ROWS_DIM, view.first, view.num_rows) for buffer in self.buffers[layer]
        )
        if self._kv_ranges is None:
            return keys, values
        found = self._kv_ranges[layer]
        return from_int8(keys, found.key_scale), from_int8(values, found.value_scale)

    def _row_indices(self, num_kv_heads: int) -> Tensor:
        """The first three coordinates of every row to write, [1, G, T, 3]."""
        if num_kv_heads not in self._indices:
            heads = torch.arange(num_kv_heads).reshape(1, -1, 1, 1)
            shape = (1, num_kv_heads, self._positions.shape[0], 1)
            rows = self._positions.reshape(1, 1, -1, 1).expand(shape)
            coordinates = (torch.zeros_like(rows), heads.expand(shape), rows)
            self._indices[num_kv_heads] = torch.cat(coordinates, dim=-1)
        return self._indices[num_kv_heads]


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention with scale 1, which repeats nothing for the query heads of a KV head.

    queries [1, T, H, E], keys and values [1, G, rows, E], mask [T, rows] -> [1, T, H, E].
    """
    num_heads, num_groups = queries.shape[2], keys.shape[1]
    # The H / G heads of a KV head are adjacent.
    folded = regroup(swap_tokens_and_heads(queries), num_groups)  # [1, G, (H / G) * T, E]
    scores = regroup(_scores(folded, keys), num_heads) + mask  # [1, H, T, rows]
    shares = regroup(torch.softmax(scores, dim=-1), num_groups)
    return swap_tokens_and_heads(regroup(product(shares, values), num_heads))


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """queries [1, G, N, E], keys [1, G, rows, E] -> [1, G, N, rows].

    onnxruntime adds at most K products at once and chooses K, 128 or more, by the number of rows
    and threads. Sums of 128 are the same for any K.
    """
    parts = zip(
        torch.split(queries, SUM_LENGTH, dim=3), torch.split(keys, SUM_LENGTH, dim=3), strict=True
    )
    products = [product_with_rows(some, others) for some, others in parts]
    scores = products[0]
    for more in products[1:]:
        scores = scores + more
    return scores


def target_views(position: Tensor, positions: Tensor, window: int, max_rows: int) -> Views:
    """What the target sees: all rows up to the query, or the last `window` of them.

    Args:
        position: [1] int64, the position of the first token.
        positions: [T], those of all.
        window: rows that a sliding layer sees, the query's own included.
        max_rows: capacity of the buffers.
    """
    end = position + positions.shape[0]
    return {
        "full_attention": _view(torch.zeros_like(position), end, positions, None, max_rows),
        "sliding_attention": _view(position - (window - 1), end, positions, window, max_rows),
    }


def drafter_views(position: Tensor, window: int, max_rows: int) -> Views:
    """What the drafter sees: the committed rows 0 .. position - 1, or the last window + 1 of them.

    transformers' bidirectional window is inclusive, hence the one more.
    """
    last = position - 1
    return {
        "full_attention": _view(torch.zeros_like(position), position, last, None, max_rows),
        "sliding_attention": _view(position - (window + 1), position, last, window + 1, max_rows),
    }


def _view(begin: Tensor, end: Tensor, queries: Tensor, window: int | None, max_rows: int) -> View:
    """Rows from `begin` (clamped to 0) up to `end`, widened to the multiples above."""
    first = floor_divide(torch.clamp(begin, min=0), FIRST_ROW_MULTIPLE)
    first = first * (FIRST_ROW_MULTIPLE // ROW_MULTIPLE)  # everything in ROW_MULTIPLE rows
    count = floor_divide(end + (ROW_MULTIPLE - 1), ROW_MULTIPLE) - first
    first_row, num_rows = _number(first), _number(count)
    first_row, num_rows = first_row * ROW_MULTIPLE, num_rows * ROW_MULTIPLE
    promise(num_rows >= 1)
    promise(first_row + num_rows <= max_rows)
    rows = first * ROW_MULTIPLE + torch.arange(num_rows)
    distance = queries.reshape(-1, 1) - rows.reshape(1, -1)  # [T, rows]
    visible = distance >= 0
    if window is not None:
        visible = torch.logical_and(visible, distance < window)
    return View(first_row, num_rows, torch.where(visible, 0.0, -torch.inf))


def _number(tensor: Tensor) -> int:
    number = tensor.item()
    assert isinstance(number, int | torch.SymInt)  # symbolic while tracing
    promise(number >= 0)
    return number
