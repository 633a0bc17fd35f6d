"""Symmetric quantization per row, bit for bit ai-edge-quantizer's, a chunk of rows at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from exporter.quantize.recipe import WeightType

CHUNK_BYTES = 32 << 20  # float32 bytes of the rows held at once
SMALLEST_BOUND = 1e-9  # ai-edge-quantizer's: a row of zeros still gets a scale


@dataclass(frozen=True)
class QuantizedRows:
    """Consecutive rows of one tensor as they are stored."""

    scales: npt.NDArray[np.float32]  # [rows]; empty for float32
    data: bytes


class RowSource(Protocol):
    """What `quantize` needs of a checkpoint."""

    def shape(self, name: str, /) -> Sequence[int]: ...
    def rows(self, name: str, start: int, stop: int, /) -> torch.Tensor: ...


def quantize(source: RowSource, name: str, weight_type: WeightType) -> Iterator[QuantizedRows]:
    """All rows of a matrix in order, never more than CHUNK_BYTES of them in memory."""
    num_rows, num_columns = source.shape(name)
    step = max(1, CHUNK_BYTES // (4 * num_columns))
    for start in range(0, num_rows, step):
        rows = source.rows(name, start, min(start + step, num_rows))
        yield QuantizedRows(*quantize_rows(rows, weight_type))


def quantize_rows(
    rows: torch.Tensor, weight_type: WeightType
) -> tuple[npt.NDArray[np.float32], bytes]:
    """Scales and packed values of some rows.

    Args:
        rows: [R, C] float32; C must be even for 4 bits.
        weight_type: 8 bits use -127..127 and 4 bits -8..7; the scale is max |row| / 127 or / 7.
            Two 4-bit values share a byte, the first in its low half.

    Returns:
        (scales [R], or [0] for float32; the values of the rows one after the other).

    Source: ai-edge-quantizer 0.10.0, uniform_quantize_tensor.py (tensor_zp_scale_from_min_max,
    uniform_quantize), symmetric, channelwise.
    """
    values: npt.NDArray[np.float32] = rows.detach().to(torch.float32).contiguous().numpy()
    if weight_type.bits == 32:
        return np.empty(0, np.float32), values.tobytes()
    highest = 2 ** (weight_type.bits - 1) - 1
    lowest = -highest if weight_type.bits == 8 else -highest - 1
    bound = np.maximum(np.abs(values.min(axis=1)), np.abs(values.max(axis=1)))
    scales = np.maximum(bound, np.float32(SMALLEST_BOUND)) / np.float32(highest)
    quotients = values / scales[:, None]
    np.rint(quotients, out=quotients)
    np.clip(quotients, lowest, highest, out=quotients)
    integers = quotients.astype(np.int8).reshape(-1)
    if weight_type.bits == 8:
        return scales, integers.tobytes()
    return scales, ((integers[0::2] & 15) | (integers[1::2] << 4)).tobytes()
