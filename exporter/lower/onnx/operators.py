"""ONNX operators that torch lacks, emitted while a graph is traced."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MICROSOFT = "com.microsoft"
DOMAIN = "gemma_export"  # of operators that exist while tracing only: see experts.py
GROUPED = "GroupedMatMul"
# MatMulNBits rounds x to int8, one scale per block. With blocks of 32 a row's result is the same in
# calls of any width; with 128 and more, or without rounding, it differs by 1e-7.
INT8_ACTIVATIONS = 4
BLOCK_SIZE = 32


def scatter_rows(buffer: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """buffer [1, G, C, E] with rows [1, G, T, E] at indices [1, G, T, 3].

    With input and output bound to one buffer, ScatterND copies nothing else.
    """
    return _emit("ScatterND", (buffer, indices, rows), {}, buffer.shape, buffer.dtype)


def to_int8(x: Tensor, scale: float) -> Tensor:
    """Rounded to the nearest integer, a half to the even one, and clipped."""
    inputs = (x, torch.tensor(scale), torch.zeros((), dtype=torch.int8))
    return _emit("QuantizeLinear", inputs, {}, x.shape, torch.int8)


def from_int8(integers: Tensor, scale: float) -> Tensor:
    return _emit("DequantizeLinear", (integers, torch.tensor(scale)), {}, integers.shape)


def regroup(x: Tensor, num_groups: int) -> Tensor:
    """[1, A, B, S] -> [1, num_groups, A * B / num_groups, S], for heads and tokens.

    torch.reshape checks strides, which would bind the symbolic sizes.
    """
    _, a, b, size = x.shape
    wanted = torch.tensor([1, num_groups, -1, 0])  # -1: what is left, 0: as it is
    return _emit("Reshape", (x, wanted), {}, (1, num_groups, a * b // num_groups, size))


def swap_tokens_and_heads(x: Tensor) -> Tensor:
    """[1, A, B, E] -> [1, B, A, E]; the strides of torch's view would bind the symbolic sizes."""
    _, a, b, size = x.shape
    return _emit("Transpose", (x,), {"perm": [0, 2, 1, 3]}, (1, b, a, size), x.dtype)


def floor_divide(numbers: Tensor, divisor: int) -> Tensor:
    """Divide int64 numbers that are not negative; torch's own goes through floating point."""
    inputs = (numbers, torch.tensor([divisor]))
    divided: Tensor = torch.onnx.ops.symbolic(
        "Div", inputs, {}, dtype=torch.int64, shape=numbers.shape
    )
    return divided


def stable_order(numbers: Tensor) -> Tensor:
    """[R] int64 -> the indices that sort them; equal ones keep their order.

    torch.onnx has no stable sort.
    """
    count = torch.onnx.ops.symbolic("Shape", (numbers,), {}, dtype=torch.int64, shape=(1,))
    kinds, shapes = (torch.int64, torch.int64), (numbers.shape, numbers.shape)
    smallest: dict[str, Any] = {"axis": 0, "largest": 0, "sorted": 1}
    _, order = torch.onnx.ops.symbolic_multi_out(
        "TopK", (numbers, count), smallest, dtypes=kinds, shapes=shapes
    )
    return order


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _emit("RMSNormalization", (x, weight), {"axis": -1, "epsilon": eps}, x.shape)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., I], weight [O, I] -> [..., O]; no transposed copy of the weight is made."""
    shape = (*x.shape[:-1], weight.shape[0])
    return _emit(f"{MICROSOFT}::FusedMatMul", (x, weight), {"transB": 1}, shape)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [1, G, N, K], b [1, G, K, M] -> [1, G, N, M]."""
    return _emit("MatMul", (a, b), {}, (*a.shape[:-1], b.shape[-1]))


def product_with_rows(a: Tensor, b: Tensor) -> Tensor:
    """a [1, G, N, K], b [1, G, M, K] -> [1, G, N, M]; no transposed copy of b is made."""
    shape = (*a.shape[:-1], b.shape[-2])
    return _emit(f"{MICROSOFT}::FusedMatMul", (a, b), {"transB": 1}, shape)


def matmul_nbits(x: Tensor, values: Tensor, scales: Tensor, bits: int, num_columns: int) -> Tensor:
    """x [..., I], values [O, blocks, bytes], scales [O, blocks] -> [..., O]."""
    num_rows = values.shape[0]
    name = f"{MICROSOFT}::MatMulNBits"
    attributes = _nbits(bits, num_rows, num_columns)
    return _emit(name, (x, values, scales), attributes, (*x.shape[:-1], num_rows))


def grouped_linear(x: Tensor, counts: Tensor, weight: Tensor) -> Tensor:
    """x [R, I] -> [R, O], the first counts[0] rows by the first of N matrices, and so on.

    counts is [N] int64, and weight [N * O, I] is N matrices one below the other.
    """
    num_experts = counts.shape[0]
    attributes = {"num_experts": num_experts, "transB": 1}
    shape = (x.shape[0], weight.shape[0] // num_experts)
    return _emit(f"{DOMAIN}::{GROUPED}", (x, counts, weight), attributes, shape)


def grouped_nbits(
    x: Tensor, counts: Tensor, weight: tuple[Tensor, Tensor], bits: int, num_columns: int
) -> Tensor:
    """As `grouped_linear`, with values [N * O, blocks, bytes] and scales [N * O, blocks]."""
    num_experts = counts.shape[0]
    num_rows = weight[0].shape[0] // num_experts
    attributes = {"num_experts": num_experts, **_nbits(bits, num_rows, num_columns)}
    inputs = (x, counts, *weight)
    return _emit(f"{DOMAIN}::{GROUPED}", inputs, attributes, (x.shape[0], num_rows))


def _nbits(bits: int, num_rows: int, num_columns: int) -> dict[str, Any]:
    """Attributes of MatMulNBits."""
    return {
        "K": num_columns,
        "N": num_rows,
        "bits": bits,
        "block_size": BLOCK_SIZE,
        "accuracy_level": INT8_ACTIVATIONS,
    }


def gather_rows(
    values: Tensor, indices: Tensor, scales: Tensor, bits: int, block_size: int
) -> Tensor:
    """values [V, I * bits / 8], scales [V, I / block_size] -> rows [..., I] of the indices."""
    attributes = {"bits": bits, "block_size": block_size, "gather_axis": 0, "quantize_axis": 1}
    num_columns = values.shape[1] * 8 // bits
    name = f"{MICROSOFT}::GatherBlockQuantized"
    return _emit(name, (values, indices, scales), attributes, (*indices.shape, num_columns))


def _emit(
    name: str,
    inputs: Sequence[Tensor],
    attributes: dict[str, Any],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    return torch.onnx.ops.symbolic(
        name,
        inputs,
        attributes,
        dtype=dtype,
        shape=shape,
        version=1 if "::" in name else None,
    )
