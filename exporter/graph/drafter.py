"""The MTP drafter: four query-only layers over the target's KV rows."""

from typing import cast

import torch
from torch import Tensor, nn

from exporter.graph.decoder_layer import DecoderLayer
from exporter.graph.kv_cache import KVCache
from exporter.graph.layers import Linear, RMSNorm, Rope, Step
from exporter.graph.masks import drafter_masks
from exporter.graph.primitives import DEFAULT, Primitives
from exporter.graph.spec import CentroidSpec, DrafterSpec


class CentroidHead(nn.Module):
    """Chooses the clusters of tokens worth scoring.

    token_ordering [V] lists the tokens cluster by cluster, V / num_centroids each.
    """

    token_ordering: Tensor

    def __init__(self, spec: DrafterSpec, centroids: CentroidSpec, primitives: Primitives) -> None:
        super().__init__()
        self._vocab_size = spec.vocab_size
        self._top_k = centroids.top_k
        self._top_k_indices = primitives.top_k_indices
        self.centroids = Linear(spec.hidden_size, centroids.num_centroids)
        ordering = torch.empty(spec.vocab_size, dtype=torch.int32, device="meta")
        self.register_buffer("token_ordering", ordering)

    def forward(self, hidden: Tensor, head: Linear) -> Tensor:
        """hidden [1, 1, d], head d -> V -> logits [1, 1, V].

        Every token outside the chosen clusters gets the smallest logit inside them, minus 1.
        """
        flat = hidden.reshape(-1)  # [d]
        scores = self.centroids(flat)  # [num_centroids]
        chosen = self._top_k_indices(scores, self._top_k)
        clusters = self.token_ordering.reshape(scores.shape[0], -1)
        token_ids = clusters[chosen].reshape(-1)  # [top_k * V / num_centroids]
        rows = head.rows(token_ids)
        logits = nn.functional.linear(flat.reshape(1, -1), rows).reshape(-1)
        everywhere = (torch.amin(logits, dim=0) - 1.0).expand(self._vocab_size)
        return everywhere.scatter(0, token_ids.long(), logits).reshape(1, 1, -1)


class Drafter(nn.Module):
    """One draft step. It reads the donors' KV rows and writes nothing."""

    def __init__(self, spec: DrafterSpec, primitives: Primitives = DEFAULT) -> None:
        super().__init__()
        self.spec = spec
        width, eps = spec.hidden_size, spec.rms_norm_eps
        self.ropes = nn.ModuleDict({kind: Rope(rope) for kind, rope in spec.ropes.items()})
        self.pre_projection = Linear(2 * spec.target_hidden_size, width)
        self.layers = nn.ModuleList(
            DecoderLayer(layer, width, 0, eps, primitives) for layer in spec.layers
        )
        self.norm = RMSNorm(width, eps, primitives)
        self.post_projection = Linear(width, spec.target_hidden_size)
        self.add_module(spec.head_name.removesuffix(".weight"), Linear(width, spec.vocab_size))
        if spec.centroids is not None:
            self.masked_embedding = CentroidHead(spec, spec.centroids, primitives)

    def forward(
        self, activations: Tensor, input_pos: Tensor, mask: Tensor | None, kv: KVCache
    ) -> tuple[Tensor, Tensor]:
        """Draft one token.

        Args:
            activations: [1, 1, 2 * D], the scaled target embedding of the last token, then the
                last hidden state: the target's at the first step, projected_activations after.
            input_pos: [1] int32, the position of the last emitted token, which is the number of
                committed rows; the same in every step of a round.
            mask: [1, 1, 1, C] additive. Rows from input_pos on are hidden whatever it says. None
                where `kv` itself knows what is visible.
            kv: holds the donor layers' rows under the target's layer numbers.

        Returns:
            logits [1, 1, V] and projected_activations [1, 1, D].
        """
        step = Step(
            input_pos=input_pos,
            rotations={kind: self.ropes[kind](input_pos) for kind in self.spec.ropes},
            masks=drafter_masks(mask, input_pos, self.spec.sliding_window),
            kv=kv,
        )
        x = self.pre_projection(activations)
        for layer in self.layers:
            x = layer(x, None, step)
        hidden = self.norm(x)
        return self._logits(hidden), self.post_projection(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        head = cast(Linear, self.get_submodule(self.spec.head_name.removesuffix(".weight")))
        if self.spec.centroids is None:
            return cast(Tensor, head(hidden))
        return cast(Tensor, self.masked_embedding(hidden, head))
