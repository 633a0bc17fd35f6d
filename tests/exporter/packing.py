"""Packed rows as numbers again."""

import numpy as np

from exporter.quantize import WeightType, quantize


def unpacked(data: bytes, bits: int) -> np.ndarray:
    """As the runtimes read them: the first of a byte in its lowest bits, two's complement."""
    stored = np.frombuffer(data, np.uint8)
    parts = [(stored << (8 - bits - low)).view(np.int8) >> (8 - bits) for low in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(-1)


def integers_and_scales(source, name: str, kind: WeightType) -> tuple[np.ndarray, np.ndarray]:
    """Integers [O, I] and scales [O, groups] of a matrix or a stack of them."""
    num_columns = source.shape(name)[-1]
    chunks = list(quantize(source, name, kind))
    integers = np.concatenate([unpacked(chunk.data, kind.bits) for chunk in chunks])
    scales = np.concatenate([chunk.scales for chunk in chunks])
    return integers.reshape(-1, num_columns), scales.reshape(len(integers) // num_columns, -1)


def dequantized(source, name: str, kind: WeightType) -> np.ndarray:
    """The matrix [O, I] that the stored numbers stand for."""
    if not kind.is_integer:
        dtype = np.float32 if kind.bits == 32 else np.float16
        stored = b"".join(chunk.data for chunk in quantize(source, name, kind))
        return np.frombuffer(stored, dtype).reshape(source.shape(name)).astype(np.float32)
    integers, scales = integers_and_scales(source, name, kind)
    groups = integers.reshape(len(integers), scales.shape[1], -1) * scales[:, :, None]
    return groups.reshape(integers.shape).astype(np.float32)
