"""Additive attention masks, and what the graph itself adds to the caller's."""

import torch
from torch import Tensor

from exporter.graph.spec import Kind

# Low enough that softmax gives exactly 0 beside any score of normed queries and keys, high enough
# that the sum of two of them, or of one and -FLT_MAX, is finite.
MASKED = -1e9


# None: the KV cache itself knows which rows are visible.
Masks = dict[Kind, Tensor | None]
CACHE_KNOWS: Masks = {"full_attention": None, "sliding_attention": None}


def target_masks(mask: Tensor | None, input_pos: Tensor, window: int) -> Masks:
    """The masks of both kinds of layers, never below MASKED.

    A row that hides everything must give finite numbers (a padded token writes its KV row too,
    and 0 * nan is nan), so the caller's -inf is clamped.

    Args:
        mask: [1, 1, T, C], 0 where a token may look and very negative elsewhere.
        input_pos: [T], the position of each token.
        window: keys a sliding layer sees, its own included.
    """
    if mask is None:
        return CACHE_KNOWS
    rows = torch.arange(mask.shape[-1], dtype=input_pos.dtype).reshape(1, 1, 1, -1)
    positions = input_pos.reshape(1, 1, -1, 1)
    return {
        "full_attention": _clamped(mask),
        "sliding_attention": _clamped(mask + _hidden_unless(rows > positions - window)),
    }


def drafter_masks(mask: Tensor | None, input_pos: Tensor, window: int) -> Masks:
    """The drafter's masks: committed rows only, whatever the caller's mask says.

    Rows 0 .. input_pos - 1 are committed. Row input_pos may hold a rejected draft, and both
    transformers and the official runtime leave it visible; here it is hidden. Sliding layers see
    the last window + 1 committed rows (transformers' bidirectional window is inclusive).

    Args:
        mask: [1, 1, 1, C].
        input_pos: [1], the position of the last emitted token.
        window: the drafter's sliding_window.
    """
    if mask is None:
        return CACHE_KNOWS
    rows = torch.arange(mask.shape[-1], dtype=input_pos.dtype).reshape(1, 1, 1, -1)
    position = input_pos.reshape(1, 1, 1, 1)
    committed = mask + _hidden_unless(rows < position)
    return {
        "full_attention": _clamped(committed),
        "sliding_attention": _clamped(committed + _hidden_unless(rows >= position - 1 - window)),
    }


def _hidden_unless(visible: Tensor) -> Tensor:
    return torch.where(visible, 0.0, MASKED)


def _clamped(mask: Tensor) -> Tensor:
    return torch.clamp(mask, min=MASKED)
