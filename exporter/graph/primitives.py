"""Functions whose spelling decides whether a runtime is fast, or right.

A lowering may hand in another spelling of a primitive; it must compute the same function.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SQRT_2_OVER_PI = 0.7978845608028654


def mean_square(x: Tensor) -> Tensor:
    """[..., D] -> [..., 1]. ExecuTorch's XNNPACK does not take aten.mean: it wants a linear."""
    return torch.mean(x * x, dim=-1, keepdim=True)


def top_k_indices(scores: Tensor, k: int) -> Tensor:
    """[..., N] -> [..., k], the indices of the k largest scores, in any order."""
    return torch.topk(scores, k, dim=-1).indices


@dataclass(frozen=True, kw_only=True)
class Primitives:
    """The spellings one lowering wants; the defaults run eagerly and trace."""

    mean_square: Callable[[Tensor], Tensor] = mean_square
    top_k_indices: Callable[[Tensor, int], Tensor] = top_k_indices


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form, written out: XNNPACK in ExecuTorch makes aten.gelu the erf form."""
    return 0.5 * x * (1.0 + torch.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)))


DEFAULT = Primitives()
