"""The three graphs: names and layout of every input and output."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exporter.graph.drafter import Drafter
from exporter.graph.spec import TargetSpec
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.lower.onnx.kv_cache import (
    Call,
    KvRanges,
    PresentRows,
    Rows,
    drafter_views,
    past_names,
    present_names,
    target_views,
)

Past = dict[str, Tensor]  # past_key_values.{i}.key and .value [1, G, C, E]


class Graph(nn.Module):
    """What is traced.

    Attributes:
        kv_ranges: of int8 rows; None where they are float32.
        layers: the target layers whose KV rows are inputs.
        output_names: of the outputs of `forward`, in order.
    """

    kv_ranges: KvRanges = None
    layers: Sequence[int]
    output_names: Sequence[str]

    def _rows(
        self, spec: TargetSpec, position: Tensor, num_tokens: int, past: Past
    ) -> tuple[PresentRows, Tensor]:
        """Those of the target, and the positions of the call's tokens."""
        positions = position + torch.arange(num_tokens)
        views = target_views(position, positions, spec.sliding_window, _num_rows(past))
        layers = [layer.index for layer in spec.kv_layers if past_names(layer.index)[0] in past]
        call, buffers = Call(positions, views), _buffers(past, layers)
        return PresentRows(buffers, spec.layers, call, self.kv_ranges), positions


class Fill(Graph):
    """token_ids [1, T] int64, position [1] int64, past -> hidden [1, T, D], present.

    With per-layer embeddings also per_layer [1, T, R, P], after hidden. Writes the KV rows
    position .. position + T - 1.
    """

    def __init__(
        self, embedder: Embedder, per_layer_embedder: PerLayerEmbedder | None, target: Target
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.per_layer_embedder = per_layer_embedder
        self.target = target
        self.layers = [layer.index for layer in target.spec.kv_layers]
        between = ["hidden"] if per_layer_embedder is None else ["hidden", "per_layer"]
        self.output_names = between + [n for i in self.layers for n in present_names(i)]

    def forward(self, token_ids: Tensor, position: Tensor, past: Past) -> tuple[Tensor, ...]:
        rows, positions = self._rows(self.target.spec, position, token_ids.shape[1], past)
        table = self.per_layer_embedder
        per_layer = None if table is None else table(token_ids)
        x, rest = self.target.fill(self.embedder(token_ids), per_layer, positions, None, rows)
        present = [tensor for i in self.layers for tensor in rows.buffers[i]]
        return (x, *present) if rest is None else (x, rest, *present)


class Finish(Graph):
    """hidden [1, T, D], position, past (and per_layer) -> logits [1, T, V], activations [1, T, D].

    Writes nothing.
    """

    output_names = ("logits", "activations")

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        last = target.spec.kv_layers[-1].index
        self.layers = sorted({layer.kv_source for layer in target.spec.layers[last:]})

    def forward(
        self, hidden: Tensor, position: Tensor, past: Past, per_layer: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rows, positions = self._rows(self.target.spec, position, hidden.shape[1], past)
        return self.target.finish(hidden, per_layer, positions, None, rows)


class DraftStep(Graph):
    """One draft step; writes nothing.

    token_id [1, 1] int64, hidden [1, 1, D], position [1] int64 (that of the last emitted token, at
    least 1), past -> logits [1, 1, V], projected [1, 1, D].
    """

    output_names = ("logits", "projected")

    def __init__(self, embedder: Embedder, spec: TargetSpec, drafter: Drafter) -> None:
        super().__init__()
        self.embedder = embedder
        self.drafter = drafter
        self.layers = sorted(set(drafter.spec.donors.values()))
        self._spec = spec

    def forward(
        self, token_id: Tensor, hidden: Tensor, position: Tensor, past: Past
    ) -> tuple[Tensor, Tensor]:
        views = drafter_views(position, self.drafter.spec.sliding_window, _num_rows(past))
        call, buffers = Call(position, views), _buffers(past, self.layers)
        rows = PresentRows(buffers, self._spec.layers, call, self.kv_ranges)
        activations = torch.cat((self.embedder(token_id), hidden), dim=-1)
        logits, projected = self.drafter(activations, position, None, rows)
        return logits, projected


def _buffers(past: Past, layers: Sequence[int]) -> Rows:
    buffers: Rows = {}
    for layer in layers:
        keys, values = past_names(layer)
        buffers[layer] = past[keys], past[values]
    return buffers


def _num_rows(past: Past) -> int:
    return next(iter(past.values())).shape[2]
