"""Symmetric quantization, a chunk of rows at a time.

With one scale per row, the result equals ai-edge-quantizer's bit for bit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from exporter.errors import ExportError
from exporter.quantize.grid import keep_grids
from exporter.quantize.recipe import WeightType

CHUNK_BYTES = 32 << 20  # float32 bytes of the rows held at once
Floats = npt.NDArray[np.float32]
Q4_0_BITS = 4
GRID_TOLERANCE = 2**-4  # steps; rounding to bfloat16 moves the eighth one by as much
SMALLEST_BOUND = 1e-9  # ai-edge-quantizer's: a row of zeros still gets a scale
LARGEST_FLOAT16 = 65504


@dataclass(frozen=True)
class QuantizedRows:
    """Consecutive rows of one tensor as they are stored."""

    scales: Floats  # [rows], [rows, groups], or empty for floating point
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

    A stack of matrices [N, O, I] counts as N * O rows. Integers and scales that the source stores
    are passed on unchanged; `plan` has given them their type.
    """
    *above, num_columns = source.shape(name)
    num_rows = math.prod(above)
    packed = source.packed(name) if weight_type.is_integer else None
    step = max(1, CHUNK_BYTES // (4 * num_columns))
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        if packed is None:
            rows = source.rows(name, start, stop)
            if weight_type.bits == 16:
                _refuse_large(name, rows)
            yield QuantizedRows(*quantize_rows(rows, weight_type))
        else:
            integers: npt.NDArray[np.int8] = packed.integers(start, stop).numpy()
            scales: Floats = packed.scales(start, stop).numpy()
            yield QuantizedRows(scales, _packed(integers.reshape(-1), weight_type.bits))


def _refuse_large(name: str, rows: torch.Tensor) -> None:
    largest = float(rows.abs().max())
    if largest > LARGEST_FLOAT16:
        raise ExportError(
            f"{name}: {largest:.0f} is among its numbers, float16 ends at {LARGEST_FLOAT16}; "
            "use --quantize float32 or int8"
        )


def quantize_rows(rows: torch.Tensor, weight_type: WeightType) -> tuple[Floats, bytes]:
    """Scales and packed values of some rows.

    Args:
        rows: [R, C] float32; a row must fill its last byte.
        weight_type: 8 bits use -127..127, 4 bits -8..7 and 2 bits -2..1; the scale is max |row|
            divided by the largest of them. Several values share a byte, the first in its lowest
            bits. With `keep_grid`, a row that is a scale times such integers already, as one of a
            checkpoint trained for so many bits is, gets that scale. The scales of groups are
            rounded to bfloat16, because XNNPACK computes with those. Groups that were trained for
            q4_0 (multiples of max / 8) have max / 8 where that is nearer to them.

    Returns:
        (scales [R], [R, C / group_size] for groups, [0] for floating point; the values of the rows
        one after the other).

    Source: ai-edge-quantizer 0.10.0, uniform_quantize_tensor.py (tensor_zp_scale_from_min_max,
    uniform_quantize), symmetric, channelwise.
    """
    values: Floats = rows.detach().to(torch.float32).contiguous().numpy()
    if not weight_type.is_integer:
        stored = values if weight_type.bits == 32 else values.astype(np.float16)
        return np.empty(0, np.float32), stored.tobytes()
    if weight_type.group_size:
        groups = values.reshape(-1, weight_type.group_size)
        scales = _group_scales(groups, weight_type.bits)
        integers = _integers(groups, scales, weight_type.bits)
        scales = scales.reshape(len(values), -1)
    else:
        scales = _scales(values, weight_type.bits)
        if weight_type.keep_grid:
            keep_grids(scales, values, _bounds(values), _ends(weight_type.bits))
        integers = _integers(values, scales, weight_type.bits)
    return scales, _packed(integers, weight_type.bits)


def _packed(integers: npt.NDArray[np.int8], bits: int) -> bytes:
    """Pack several values per byte, the first in the lowest bits."""
    per_byte, mask = 8 // bits, np.uint8(2**bits - 1)
    unsigned = integers.view(np.uint8) & mask
    packed = unsigned[0::per_byte].copy()
    for index in range(1, per_byte):
        packed |= unsigned[index::per_byte] << np.uint8(bits * index)
    return packed.tobytes()


def _scales(rows: Floats, bits: int) -> Floats:
    scales: Floats = _bounds(rows) / np.float32(2 ** (bits - 1) - 1)
    return scales


def _bounds(rows: Floats) -> Floats:
    largest = np.maximum(np.abs(rows.min(axis=1)), np.abs(rows.max(axis=1)))
    bounds: Floats = np.maximum(largest, np.float32(SMALLEST_BOUND))
    return bounds


def _group_scales(groups: Floats, bits: int) -> Floats:
    scales = _bfloat16(_scales(groups, bits))
    trained = _on_q4_0_grid(groups) if bits == Q4_0_BITS else np.empty(0, np.int64)
    if not trained.size:
        return scales
    # q4_0 chooses the scale's sign so that the largest value is -8. XNNPACK wants a positive scale:
    # a positive largest value becomes 7, and the other 31 stay.
    some = groups[trained]
    exact_eighths = _bounds(some) / np.float32(8)
    eighths = _bfloat16(exact_eighths)
    clipped = some.max(axis=1) > np.float32(7.5) * eighths
    doubtful = np.flatnonzero(clipped | (eighths != exact_eighths))
    sevenths = scales[trained[doubtful]]
    farther = _error(some[doubtful], eighths[doubtful], bits) >= _error(
        some[doubtful], sevenths, bits
    )
    eighths[doubtful[farther]] = sevenths[farther]
    scales[trained] = eighths
    return scales


def _error(groups: Floats, scales: Floats, bits: int) -> Floats:
    rounded = _integers(groups, scales, bits).reshape(groups.shape) * scales[:, None]
    error: Floats = np.square(rounded - groups).sum(axis=1)
    return error


def _on_q4_0_grid(groups: Floats) -> npt.NDArray[np.int64]:
    """Indices of groups whose values are all multiples of an eighth of the largest."""
    bounds = _bounds(groups)
    found = np.flatnonzero(bounds > np.float32(SMALLEST_BOUND))
    # A few columns rule out nearly all groups.
    for columns in (slice(0, 4), slice(4, None)):
        steps = groups[found, columns] * (np.float32(8) / bounds[found])[:, None]
        found = found[(np.abs(steps - np.rint(steps)) <= GRID_TOLERANCE).all(axis=1)]
    return found


def _integers(rows: Floats, scales: Floats, bits: int) -> npt.NDArray[np.int8]:
    quotients = rows / scales[:, None]
    np.rint(quotients, out=quotients)
    np.clip(quotients, *_ends(bits), out=quotients)
    return quotients.astype(np.int8).reshape(-1)


def _ends(bits: int) -> tuple[int, int]:
    """The lowest and the highest integer."""
    highest = 2 ** (bits - 1) - 1
    return (-highest if bits == 8 else -highest - 1), highest


def _bfloat16(scales: Floats) -> Floats:
    rounded: Floats = torch.from_numpy(scales).to(torch.bfloat16).to(torch.float32).numpy()
    return rounded
