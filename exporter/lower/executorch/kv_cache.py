"""KV rows as buffers that all methods of a program share, and attention over those in use."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exporter.graph.spec import Kind, LayerSpec
from exporter.lower.executorch.vendor import promise

ROWS_DIM = 1


class KVBuffers(nn.Module):
    """k_{i} and v_{i} [1, C, G, E] of the layers that own rows.

    Methods share a buffer by its fully qualified name: every method must hold this module under
    the same name.
    """

    def __init__(self, layers: Iterable[LayerSpec], cache_length: int) -> None:
        super().__init__()
        self.cache_length = cache_length
        for layer in layers:
            for name in (f"k_{layer.index}", f"v_{layer.index}"):
                shape = (1, cache_length, layer.num_kv_heads, layer.head_dim)
                self.register_buffer(name, torch.zeros(shape))

    def keys(self, layer: int) -> Tensor:
        return self.get_buffer(f"k_{layer}")

    def values(self, layer: int) -> Tensor:
        return self.get_buffer(f"v_{layer}")


@dataclass(frozen=True)
class View:
    """The rows that layers of one kind read in one call.

    The sizes are symbolic integers while the graph is traced.
    """

    query_row: int  # the first query's own row, counted in the view
    mask: Tensor | None = (
        None  # [T, rows] additive; None: causal, query t sees rows up to query_row + t
    )
    first: int = 0
    num_rows: int | None = None  # None: the buffer itself, without a copy


Views = Mapping[Kind, View]


class PresentRows:
    """The KVCache of one call: it costs what the rows in use cost, not the capacity."""

    def __init__(
        self, buffers: KVBuffers, layers: tuple[LayerSpec, ...], views: Views, position: int
    ) -> None:
        self._buffers = buffers
        self._layers = layers
        self._views = views
        self._position = position
        # Layers that share a donor also share the copy of its window.
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, keys: Tensor, values: Tensor, input_pos: Tensor) -> None:  # noqa: ARG002
        """Keys and values [1, T, G, E] into the rows position .. position + T - 1, in place."""
        update = torch.ops.llama.update_cache
        update(keys, self._buffers.keys(layer), self._position)
        update(values, self._buffers.values(layer), self._position)

    def attend(self, layer: int, queries: Tensor, mask: Tensor | None) -> Tensor:
        """Queries [1, T, H, E] -> [1, T, H, E]; the view hides what must not be seen."""
        assert mask is None, "the views hide rows, not the caller's mask"
        view = self._views[self._layers[layer].kind]
        if layer not in self._seen:
            self._seen[layer] = (
                _viewed(self._buffers.keys(layer), view),
                _viewed(self._buffers.values(layer), view),
            )
        keys, values = self._seen[layer]
        mixed: Tensor = torch.ops.llama.custom_sdpa(
            queries, keys, values, view.query_row, view.mask, 0.0, view.mask is None, 1.0
        )
        return mixed


def target_views(position: Tensor, start: int, num_tokens: int, sizes: tuple[int, int]) -> Views:
    """What the target sees: all rows up to the query, or the last `window` of them.

    Args:
        position: [1] int64, the position of the first token.
        start: the same as a number.
        num_tokens: T.
        sizes: (window, cache_length); the window counts the query's own row.
    """
    window, cache_length = sizes
    before = torch.clamp(position, max=window - 1)  # rows before the first query that are visible
    num_before = _number(before, window - 1)
    promise(num_before <= start)
    promise(start + num_tokens <= cache_length)
    num_rows = num_before + num_tokens
    queries = (before + torch.arange(num_tokens)).reshape(-1, 1)
    distance = queries - torch.arange(num_rows).reshape(1, -1)  # [T, rows]
    visible = torch.logical_and(distance >= 0, distance < window)
    mask = torch.where(visible, 0.0, -torch.inf)
    return {
        "full_attention": View(start),
        "sliding_attention": View(num_before, mask, start - num_before, num_rows),
    }


def drafter_views(position: Tensor, start: int, window: int) -> Views:
    """What the drafter sees: the committed rows 0 .. position - 1, or the last window + 1 of them.

    transformers' bidirectional window is inclusive, hence the one more.
    """
    num_rows = _number(torch.clamp(position, max=window + 1), window + 1)
    promise(num_rows >= 1)
    promise(num_rows <= start)
    return {
        "full_attention": View(start - 1),
        "sliding_attention": View(num_rows - 1, None, start - num_rows, num_rows),
    }


def read_position(position: Tensor, smallest: int, largest: int) -> int:
    """The number in a [1] tensor, with the bounds that the sizes of the graph need."""
    start = position.item()
    assert isinstance(start, int | torch.SymInt)  # symbolic while tracing
    promise(start >= smallest)
    promise(start <= largest)
    return start


def _number(tensor: Tensor, largest: int) -> int:
    return read_position(tensor, 0, largest)


def _viewed(buffer: Tensor, view: View) -> Tensor:
    if view.num_rows is None:
        return buffer
    return buffer.narrow(ROWS_DIM, view.first, view.num_rows)
