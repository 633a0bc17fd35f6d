"""The file that holds all weights of a bundle, each once; written a chunk at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from exporter.lower.onnx.weights import Matrix
from exporter.quantize import quantize

# onnxruntime maps each weight separately, so large ones start at a page of their own.
PAGE_BYTES = 4096
SMALL_ALIGNMENT = 64
_PAGED_BYTES = 16 * PAGE_BYTES  # tensors from this size on start a page
# XOR turns two's complement into MatMulNBits' integers: the value plus 128, 8 or 2.
_OFFSETS = {8: 0x80, 4: 0x88, 2: 0xAA}


@dataclass(frozen=True)
class Place:
    offset: int
    length: int


class DataFile:
    """The open file; a weight that was written is found again by its key."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._end = 0
        self._places: dict[tuple[object, ...], Place] = {}

    def vector(self, key: str, values: npt.NDArray[np.generic]) -> Place:
        """Write a small tensor as it is."""
        if (key,) not in self._places:
            self._places[key,] = place = self._reserve(values.nbytes)
            self._write(place.offset, values.tobytes())
        return self._places[key,]

    def matrix(self, matrix: Matrix, row_bytes: int) -> tuple[Place, Place]:
        """Write the rows, each padded to `row_bytes`, and the scales (none for floating point)."""
        values_key, scales_key = (matrix, row_bytes), (matrix, "scales")
        if values_key not in self._places:
            values = self._reserve(matrix.num_rows * row_bytes)
            num_scales = matrix.num_rows * matrix.num_groups if matrix.weight_type.is_integer else 0
            scales = self._places.get(scales_key) or self._reserve(4 * num_scales)
            self._places[values_key], self._places[scales_key] = values, scales
            self._write_rows(matrix, values, scales)
        return self._places[values_key], self._places[scales_key]

    def _write_rows(self, matrix: Matrix, values: Place, scales: Place) -> None:
        row_bytes = values.length // matrix.num_rows
        values_at, scales_at = values.offset, scales.offset
        for chunk in quantize(matrix.checkpoint, matrix.name, matrix.weight_type):
            data = chunk.data
            if matrix.weight_type.is_integer:
                stored = np.frombuffer(data, np.uint8).reshape(-1, matrix.row_bytes)
                padding = ((0, 0), (0, row_bytes - matrix.row_bytes))
                data = (np.pad(stored, padding) ^ np.uint8(_OFFSETS[matrix.bits])).tobytes()
            self._write(values_at, data)
            self._write(scales_at, chunk.scales.tobytes())
            values_at += len(data)
            scales_at += chunk.scales.nbytes

    def _reserve(self, length: int) -> Place:
        alignment = PAGE_BYTES if length >= _PAGED_BYTES else SMALL_ALIGNMENT
        offset = -(-self._end // alignment) * alignment
        self._end = offset + length
        return Place(offset, length)

    def _write(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        self._file.write(data)


@contextmanager
def data_file(path: Path) -> Iterator[DataFile]:
    with path.open("wb") as file:
        yield DataFile(path, file)
