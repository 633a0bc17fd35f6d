"""Symmetric quantization, a chunk of rows at a time.

One scale per row is bit for bit ai-edge-quantizer's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from exporter.quantize.recipe import WeightType

CHUNK_BYTES = 32 << 20  # float32 bytes of the rows held at once
Floats = npt.NDArray[np.float32]
SMALLEST_BOUND = 1e-9  # ai-edge-quantizer's: a row of zeros still gets a scale


@dataclass(frozen=True)
class QuantizedRows:
    """Consecutive rows of one tensor as they are stored."""

    scales: Floats  # [rows], [rows, groups], or empty for float32
    data: bytes


class RowSource(Protocol):
    """What `quantize` needs of a checkpoint."""

    def shape(self, name: str, /) -> Sequence[int]: ...
    def rows(self, name: str, start: int, stop: int, /) -> torch.Tensor: ...
    def packed(self, name: str, /) -> "PackedRows | None": ...


class PackedRows(Protocol):
    """Integers that a checkpoint stores."""

    def integers(self, start: int, stop: int, /) -> torch.Tensor: ...  # [R, C] int8
    def scales(self, start: int, stop: int, /) -> torch.Tensor: ...  # [R] or [R, groups]


def quantize(source: RowSource, name: str, weight_type: WeightType) -> Iterator[QuantizedRows]:
    """All rows of a matrix in order, never more than CHUNK_BYTES of them in memory.

    A stack of matrices [N, O, I] is one matrix below the other: N * O rows. Integers that the
    source has are passed on as they are, and so are their scales; `plan` has given them their type.
    """
    *above, num_columns = source.shape(name)
    num_rows = math.prod(above)
    packed = None if weight_type.bits == 32 else source.packed(name)
    step = max(1, CHUNK_BYTES // (4 * num_columns))
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        if packed is None:
            rows = source.rows(name, start, stop)
            yield QuantizedRows(*quantize_rows(rows, weight_type))
        else:
            integers: npt.NDArray[np.int8] = packed.integers(start, stop).numpy()
            scales: Floats = packed.scales(start, stop).numpy()
            yield QuantizedRows(scales, _packed(integers.reshape(-1), weight_type.bits))


def quantize_rows(rows: torch.Tensor, weight_type: WeightType) -> tuple[Floats, bytes]:
    """Scales and packed values of some rows.

    Args:
        rows: [R, C] float32; C must be even for 4 bits.
        weight_type: 8 bits use -127..127 and 4 bits -8..7; the scale is max |row| / 127 or / 7.
            Two 4-bit values share a byte, the first in its low half. The scales of groups are
            rounded to bfloat16, because XNNPACK computes with those.

    Returns:
        (scales [R], [R, C / group_size] for groups, [0] for float32; the values of the rows one
        after the other).

    Source: ai-edge-quantizer 0.10.0, uniform_quantize_tensor.py (tensor_zp_scale_from_min_max,
    uniform_quantize), symmetric, channelwise.
    """
    values: Floats = rows.detach().to(torch.float32).contiguous().numpy()
    if weight_type.bits == 32:
        return np.empty(0, np.float32), values.tobytes()
    if weight_type.group_size:
        groups = values.reshape(-1, weight_type.group_size)
        scales, integers = _quantize(groups, weight_type.bits, _bfloat16)
        scales = scales.reshape(len(values), -1)
    else:
        scales, integers = _quantize(values, weight_type.bits, _as_it_is)
    return scales, _packed(integers, weight_type.bits)


def _packed(integers: npt.NDArray[np.int8], bits: int) -> bytes:
    """Several values a byte, the first in its lowest bits."""
    per_byte, mask = 8 // bits, np.uint8(2**bits - 1)
    unsigned = integers.view(np.uint8) & mask
    packed = unsigned[0::per_byte].copy()
    for index in range(1, per_byte):
        packed |= unsigned[index::per_byte] << np.uint8(bits * index)
    return packed.tobytes()


def _quantize(
    rows: Floats, bits: int, rounded: Callable[[Floats], Floats]
) -> tuple[Floats, npt.NDArray[np.int8]]:
    highest = 2 ** (bits - 1) - 1
    lowest = -highest if bits == 8 else -highest - 1
    bound = np.maximum(np.abs(rows.min(axis=1)), np.abs(rows.max(axis=1)))
    scales = rounded(np.maximum(bound, np.float32(SMALLEST_BOUND)) / np.float32(highest))
    quotients = rows / scales[:, None]
    np.rint(quotients, out=quotients)
    np.clip(quotients, lowest, highest, out=quotients)
    return scales, quotients.astype(np.int8).reshape(-1)


def _as_it_is(scales: Floats) -> Floats:
    return scales


def _bfloat16(scales: Floats) -> Floats:
    rounded: Floats = torch.from_numpy(scales).to(torch.bfloat16).to(torch.float32).numpy()
    return rounded
