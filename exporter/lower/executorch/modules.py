"""The methods of the program: names, order and layout of every input and output."""

import torch
from torch import Tensor, nn

from exporter.graph.drafter import Drafter
from exporter.graph.layers import RMSNorm
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.lower.executorch.kv_cache import (
    KVBuffers,
    PresentRows,
    drafter_views,
    read_position,
    target_views,
)


class MeanSquare(nn.Module):
    """A linear instead of aten.mean, which XNNPACK does not take: it would split the graph."""

    averages: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        # A buffer: a tensor made by an operator while tracing is not a constant to XNNPACK.
        self.register_buffer("averages", torch.full((1, size), 1.0 / size))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x * x, self.averages)


def spell_means(module: nn.Module) -> None:
    """Make every norm of `module` take its mean by a linear.

    Each has its own weight: the partitioner puts all linears that share a weight into one
    partition, and fails ("dependency cycles") where other layers lie between them.
    """
    for norm in list(module.modules()):
        if isinstance(norm, RMSNorm):
            norm.mean_square = MeanSquare(norm.size)


class Fill(nn.Module):
    """token_ids [1, T] int64, position [1] int64 -> what `Finish` takes, but for the position.

    Writes the KV rows position .. position + T - 1. The two together are one target call: prefill
    runs the first only, and no weight belongs to two methods, for XNNPACK packs the weights of
    each method separately.
    """

    def __init__(
        self,
        kv: KVBuffers,
        embedder: Embedder,
        per_layer_embedder: PerLayerEmbedder | None,
        target: Target,
    ) -> None:
        super().__init__()
        self.kv = kv
        self.embedder = embedder
        self.per_layer_embedder = per_layer_embedder
        self.target = target

    def forward(self, token_ids: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        rows, input_pos = _rows_of_target(self.kv, self.target, position, token_ids.shape[1])
        table = self.per_layer_embedder
        per_layer = None if table is None else table(token_ids)
        x, rest = self.target.fill(self.embedder(token_ids), per_layer, input_pos, None, rows)
        return (x,) if rest is None else (x, rest)


class Finish(nn.Module):
    """hidden [1, T, D], with PLE also rest [1, T, R, P], position -> logits, activations.

    logits [1, T, V], activations [1, T, D]. Writes nothing.
    """

    def __init__(self, kv: KVBuffers, target: Target) -> None:
        super().__init__()
        self.kv = kv
        self.target = target

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, *rest, position = inputs
        rows, input_pos = _rows_of_target(self.kv, self.target, position, x.shape[1])
        return self.target.finish(x, rest[0] if rest else None, input_pos, None, rows)


def _rows_of_target(
    kv: KVBuffers, target: Target, position: Tensor, num_tokens: int
) -> tuple[PresentRows, Tensor]:
    spec = target.spec
    start = read_position(position, 0, kv.cache_length - 1)
    views = target_views(position, start, num_tokens, (spec.sliding_window, kv.cache_length))
    return PresentRows(kv, spec.layers, views, start), position + torch.arange(num_tokens)


class DraftStep(nn.Module):
    """One draft step; writes nothing.

    token_id [1, 1] int64, hidden [1, 1, D], position [1] int64 (that of the last emitted token, at
    least 1) -> logits [1, 1, V], projected [1, 1, D].
    """

    def __init__(self, kv: KVBuffers, embedder: Embedder, target: Target, drafter: Drafter) -> None:
        super().__init__()
        self.kv = kv
        self.embedder = embedder
        self.drafter = drafter
        self._layers = target.spec.layers

    def forward(self, token_id: Tensor, hidden: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        start = read_position(position, 1, self.kv.cache_length)
        views = drafter_views(position, start, self.drafter.spec.sliding_window)
        rows = PresentRows(self.kv, self._layers, views, start)
        activations = torch.cat((self.embedder(token_id), hidden), dim=-1)
        logits, projected = self.drafter(activations, position, None, rows)
        return logits, projected
