"""LiteRT's own operators, where the converter would choose worse ones.

The converter simplifies torch's operators without knowing what XNNPACK runs well.
"""

import torch
from torch import Tensor

from exporter.lower.litert.vendor import dynamic_update_slice, tfl


def update_slice(buffer: Tensor, rows: Tensor, start: Tensor, dim: int) -> Tensor:
    """KV rows by tfl.dynamic_update_slice, so that a runtime can bind one buffer in and out."""
    zero = torch.zeros((), dtype=start.dtype)
    starts = [start if axis == dim else zero for axis in range(buffer.dim())]
    return dynamic_update_slice(buffer, rows, starts)


def gather(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    """One GATHER; torch.index_select becomes about ten operators that check the indices."""
    taken: Tensor = tfl().gather(x, indices, dim)
    return taken


def batch_matmul(x: Tensor, y: Tensor, *, transposed: bool = False) -> Tensor:
    """x [..., M, K] times y [..., K, N], or times y [..., N, K] transposed, in this order.

    For torch.matmul and einsum the converter chooses sides and transposes itself.
    """
    product: Tensor = tfl().batch_matmul(x, y, False, transposed)
    return product


def top_k_indices(scores: Tensor, k: int) -> Tensor:
    """aten.topk becomes an operator that the interpreter refuses."""
    indices: Tensor = tfl().topk_v2(scores, k)[1]
    return indices


def mean_square(x: Tensor) -> Tensor:
    """[..., D] -> [..., 1], with nothing between the square and the mean.

    XNNPACK fuses the two, which rounds differently. Some simplifications of the converter depend
    on the number of tokens and would leave a reshape between the two: a token's numbers would
    change with the width of its call.
    """
    shape = (*x.shape[:-1], 1)
    if x.dim() > 3 and x.shape[-2] == 1:
        x = x.squeeze(
            -2
        )  # else the converter moves the reshape that made this dimension behind the square
    mean: Tensor = tfl().mean(tfl().mul(x, x), [x.dim() - 1], True)
    return mean.reshape(shape)
