"""What a Gemma 4 model is, as plain numbers: the only thing the graph is built from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["sliding_attention", "full_attention"]
KINDS: tuple[Kind, ...] = ("sliding_attention", "full_attention")


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """Experts beside a layer's dense MLP, a few of which are active for each token."""

    num_experts: int
    top_k: int  # experts per token
    intermediate_size: int  # of each


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One decoder layer of the target or of the drafter."""

    index: int
    kind: Kind
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    kv_source: int  # the TARGET layer whose KV rows this layer attends
    values_from_keys: bool  # attention_k_eq_v: values are the key projection before its norm
    in_drafter: bool = False  # a drafter layer never owns rows, whatever its index
    experts: ExpertSpec | None = None  # None: the dense MLP alone

    @property
    def owns_kv(self) -> bool:
        return self.kv_source == self.index and not self.in_drafter


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary positions of one kind of layer."""

    theta: float
    head_dim: int
    partial_rotary_factor: float = 1.0  # share of the frequencies that turn; the rest stay at 0
    factor: float = 1.0  # divides every frequency

    @property
    def num_turning(self) -> int:
        """How many of the head_dim / 2 frequencies are not 0."""
        return int(self.partial_rotary_factor * self.head_dim // 2)


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """The model whose output must be preserved."""

    vocab_size: int
    hidden_size: int
    sliding_window: int  # keys a sliding layer sees, its own included
    rms_norm_eps: float
    layers: tuple[LayerSpec, ...]
    ropes: Mapping[Kind, RopeSpec]
    logit_softcap: float | None
    tied_head: bool  # lm_head is the embedding table
    per_layer_size: int  # P, width of the per-layer embeddings; 0: the model has none
    per_layer_vocab_size: int  # rows of their table
    suppressed_ids: tuple[int, ...] = ()  # tokens that are never said
    placeholder_ids: tuple[int, ...] = ()  # of other modalities: they embed as pad_token_id does
    pad_token_id: int = 0

    @property
    def donors(self) -> dict[Kind, int]:
        """The last layer of each kind that owns its KV: what shared layers and the drafter read."""
        return {layer.kind: layer.index for layer in self.layers if layer.owns_kv}

    @property
    def kv_layers(self) -> tuple[LayerSpec, ...]:
        return tuple(layer for layer in self.layers if layer.owns_kv)

    @property
    def head_name(self) -> str:
        return head_name(self.tied_head)


@dataclass(frozen=True, kw_only=True)
class CentroidSpec:
    """A drafter head that scores the tokens of the best clusters only."""

    num_centroids: int
    top_k: int  # clusters scored per token


@dataclass(frozen=True, kw_only=True)
class DrafterSpec:
    """The MTP drafter of one target."""

    vocab_size: int
    hidden_size: int
    target_hidden_size: int
    sliding_window: int  # its sliding layers see this many committed rows and one more
    rms_norm_eps: float
    layers: tuple[LayerSpec, ...]
    ropes: Mapping[Kind, RopeSpec]
    tied_head: bool
    centroids: CentroidSpec | None  # None: a dense head

    @property
    def donors(self) -> dict[Kind, int]:
        """The target layers whose KV the drafter reads."""
        return {layer.kind: layer.kv_source for layer in self.layers}

    @property
    def head_name(self) -> str:
        return head_name(self.tied_head)


def head_name(tied: bool) -> str:
    """The normalised name of the matrix that makes logits."""
    return "embed_tokens.weight" if tied else "lm_head.weight"
