"""The target: embedders, the decoder, and the head."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from exporter.graph.decoder_layer import DecoderLayer
from exporter.graph.kv_cache import KVCache
from exporter.graph.layers import Linear, RMSNorm, Rope, Step, meta_parameter
from exporter.graph.masks import target_masks
from exporter.graph.primitives import DEFAULT, Primitives
from exporter.graph.spec import TargetSpec

# Added to the logit of a suppressed token. Sampling noise (up to 41 times the temperature) does not
# lift it above the others, even at a temperature of 500; and it is finite in float16, as is its sum
# with a logit, so that float16 activations do not become NaN.
SUPPRESSED = -30_000.0


class Table(nn.Module):
    """token_ids [1, T] -> rows [1, T, width] times a constant."""

    def __init__(self, num_rows: int, width: int, scale: float) -> None:
        super().__init__()
        self.weight = meta_parameter(num_rows, width)
        self.scale = scale

    def forward(self, token_ids: Tensor) -> Tensor:
        return nn.functional.embedding(token_ids, self.weight) * self.scale


def embedded_ids(token_ids: Tensor, spec: TargetSpec) -> Tensor:
    """token_ids with padding in place of image and audio placeholders.

    transformers' multimodal classes do the same, in prompt and answer, before they insert the other
    modality's embeddings; text-only, padding stays.
    """
    for placeholder in spec.placeholder_ids:
        token_ids = token_ids.masked_fill(token_ids == placeholder, spec.pad_token_id)
    return token_ids


class Embedder(nn.Module):
    """token_ids [1, T] int32 -> embeddings [1, T, D], scaled by sqrt(D)."""

    def __init__(self, spec: TargetSpec) -> None:
        super().__init__()
        self._spec = spec
        self.embed_tokens = Table(spec.vocab_size, spec.hidden_size, math.sqrt(spec.hidden_size))

    def forward(self, token_ids: Tensor) -> Tensor:
        return cast(Tensor, self.embed_tokens(embedded_ids(token_ids, self._spec)))


class PerLayerEmbedder(nn.Module):
    """token_ids [1, T] int32 -> per-layer embeddings [1, T, L, P], scaled by sqrt(P)."""

    def __init__(self, spec: TargetSpec) -> None:
        super().__init__()
        self._spec = spec
        self._shape = (len(spec.layers), spec.per_layer_size)
        self.embed_tokens_per_layer = Table(
            spec.per_layer_vocab_size, math.prod(self._shape), math.sqrt(spec.per_layer_size)
        )

    def forward(self, token_ids: Tensor) -> Tensor:
        rows = self.embed_tokens_per_layer(embedded_ids(token_ids, self._spec))
        return cast(Tensor, rows.reshape(1, -1, *self._shape))


class Target(nn.Module):
    """The decoder stack: `forward` is `fill`, which writes all KV rows, then `finish`."""

    def __init__(self, spec: TargetSpec, primitives: Primitives = DEFAULT) -> None:
        super().__init__()
        self.spec = spec
        width, eps = spec.hidden_size, spec.rms_norm_eps
        self.ropes = nn.ModuleDict({kind: Rope(rope) for kind, rope in spec.ropes.items()})
        self.layers = nn.ModuleList(
            DecoderLayer(layer, width, spec.per_layer_size, eps, primitives)
            for layer in spec.layers
        )
        if spec.per_layer_size:
            packed = len(spec.layers) * spec.per_layer_size
            self.per_layer_model_projection = Linear(width, packed)
            self.per_layer_projection_norm = RMSNorm(spec.per_layer_size, eps, primitives)
        self.norm = RMSNorm(width, eps, primitives)
        # A tied head is the embedding table and carries its name.
        head = Linear(width, spec.vocab_size)
        self.add_module(spec.head_name.removesuffix(".weight"), head)
        self.suppression: nn.Parameter | None = None
        if spec.suppressed_ids:
            # Not a buffer: every method of an ExecuTorch program keeps those, used or not.
            bias = torch.zeros(spec.vocab_size)
            bias[list(spec.suppressed_ids)] = SUPPRESSED
            self.suppression = nn.Parameter(bias, requires_grad=False)

    def forward(
        self,
        embeddings: Tensor,
        per_layer_embeddings: Tensor | None,
        input_pos: Tensor,
        mask: Tensor | None,
        kv: KVCache,
    ) -> tuple[Tensor, Tensor]:
        """One call over T consecutive tokens; also writes their KV rows.

        Args:
            embeddings: [1, T, D] from Embedder.
            per_layer_embeddings: [1, T, L, P] from PerLayerEmbedder; None without PLE.
            input_pos: [T] int32, consecutive; token t is written to KV row input_pos[t].
            mask: [1, 1, T, C], 0 on rows 0 .. input_pos[t] and very negative elsewhere. The
                sliding window is added here. None where `kv` itself knows what is visible.
            kv: the rows 0 .. input_pos[0] - 1 must be committed.

        Returns:
            logits [1, T, V] and activations [1, T, D]: the normed hidden states, which are the
            drafter's last_hidden.
        """
        x, rest = self.fill(embeddings, per_layer_embeddings, input_pos, mask, kv)
        return self.finish(x, rest, input_pos, mask, kv)

    def fill(
        self,
        embeddings: Tensor,
        per_layer_embeddings: Tensor | None,
        input_pos: Tensor,
        mask: Tensor | None,
        kv: KVCache,
    ) -> tuple[Tensor, Tensor | None]:
        """Write all KV rows, up to the last layer that owns any: all that prefill needs.

        Returns:
            what `finish` needs: that layer's input [1, T, D], and the per-layer inputs
            [1, T, R, P] of the R layers from it on; None without PLE.
        """
        step = self._step(input_pos, mask, kv)
        mixed = self._mix(embeddings, per_layer_embeddings)
        x, last = embeddings, self._last_owner
        for index in range(last):
            x = self.layers[index](x, _slice(mixed, index), step)
        cast(DecoderLayer, self.layers[last]).write(x, step)
        return x, None if mixed is None else mixed[:, :, last:, :]

    def finish(
        self, x: Tensor, rest: Tensor | None, input_pos: Tensor, mask: Tensor | None, kv: KVCache
    ) -> tuple[Tensor, Tensor]:
        """The rest of the call, after `fill`; writes nothing.

        Args:
            x: [1, T, D] and
            rest: [1, T, R, P], as `fill` returned them.

        Returns:
            as `forward`.
        """
        step, last = self._step(input_pos, mask, kv), self._last_owner
        x = cast(DecoderLayer, self.layers[last]).after_write(x, _slice(rest, 0), step)
        for index in range(last + 1, len(self.layers)):
            x = self.layers[index](x, _slice(rest, index - last), step)
        activations = self.norm(x)
        return self._logits(activations), activations

    @property
    def _last_owner(self) -> int:
        return self.spec.kv_layers[-1].index

    def _step(self, input_pos: Tensor, mask: Tensor | None, kv: KVCache) -> Step:
        return Step(
            input_pos=input_pos,
            rotations={kind: self.ropes[kind](input_pos) for kind in self.spec.ropes},
            masks=target_masks(mask, input_pos, self.spec.sliding_window),
            kv=kv,
        )

    def _mix(self, embeddings: Tensor, per_layer_embeddings: Tensor | None) -> Tensor | None:
        """The per-layer inputs, which each layer's gate multiplies, [1, T, L, P]."""
        if per_layer_embeddings is None:
            return None
        # Scaled before the projection: a converter folds a factor behind a matrix into its weights,
        # which must stay the checkpoint's.
        scaled = embeddings * (1.0 / math.sqrt(self.spec.hidden_size))
        projected = self.per_layer_model_projection(scaled)
        projected = projected.reshape(per_layer_embeddings.shape)
        normed = cast(Tensor, self.per_layer_projection_norm(projected))
        return (normed + per_layer_embeddings) * (1.0 / math.sqrt(2.0))

    def _logits(self, activations: Tensor) -> Tensor:
        head = self.get_submodule(self.spec.head_name.removesuffix(".weight"))
        cap = self.spec.logit_softcap
        if cap is None:
            logits = cast(Tensor, head(activations))
        else:
            # Divided before the head for the same reason, and because D is far smaller than V.
            logits = torch.tanh(head(activations * (1.0 / cap))) * cap
        return logits if self.suppression is None else logits + self.suppression


def _slice(mixed: Tensor | None, index: int) -> Tensor | None:
    return None if mixed is None else mixed[:, :, index, :]
