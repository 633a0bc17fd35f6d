"""The numbers are ai-edge-quantizer's, whatever the rows and however they are cut."""

import numpy as np
import pytest
import torch
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithms.uniform_quantize import dequantized_weight_recovery as recovery
from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as oracle
from ai_edge_quantizer.transformations import transformation_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from exporter.errors import ExportError
from exporter.quantize import WeightType, quantize, quantize_rows
from exporter.quantize import arithmetic as arithmetic_module
from tests.exporter.packing import unpacked

MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 4).map(lambda quarter: 4 * quarter)),
    elements=st.floats(-1e4, 1e4, width=32),
)


@pytest.mark.parametrize("bits", [8, 4, 2])
@given(rows=MATRICES)
@settings(max_examples=200, deadline=None)
def test_integers_and_scales_are_those_of_ai_edge_quantizer(rows, bits):
    zero_point, scale = oracle.tensor_zp_scale_from_min_max(
        rows.min(1, keepdims=True),
        rows.max(1, keepdims=True),
        bits,
        True,
        qtyping.QuantGranularity.CHANNELWISE,
    )
    expected = oracle.uniform_quantize(
        rows, qtyping.UniformQuantParams(bits, 0, scale, zero_point, symmetric=True)
    )

    scales, data = quantize_rows(torch.from_numpy(rows), WeightType(bits))

    assert scales.dtype == np.float32
    np.testing.assert_array_equal(scales, scale[:, 0])
    np.testing.assert_array_equal(unpacked(data, bits).reshape(rows.shape), expected)
    assert data == transformation_utils.pack_data(bits, expected).tobytes()


@given(rows=MATRICES.map(lambda rows: np.tile(rows, 32)))
@settings(max_examples=100, deadline=None)
def test_a_group_is_a_row_of_its_own_with_a_bfloat16_scale(rows):
    scales, data = quantize_rows(torch.from_numpy(rows), WeightType(4, 32))

    groups = torch.from_numpy(rows.reshape(-1, 32))
    row_scales, _ = quantize_rows(groups, WeightType(4))
    expected = torch.from_numpy(row_scales).bfloat16().float().numpy()
    assert scales.shape == (len(rows), rows.shape[1] // 32)
    integers = unpacked(data, 4).reshape(groups.shape)
    error = np.abs(integers * expected[:, None] - groups.numpy()).max(axis=1)
    ordinary = scales.reshape(-1) == expected  # others look as if trained for q4_0
    # Half a step, and what rounding the scale took off the largest value.
    bound = 0.5 * expected * 1.001 + 7 * np.abs(expected - row_scales)
    assert (error <= bound)[ordinary].all()
    found = torch.from_numpy(integers * scales.reshape(-1, 1))
    sums = ((rounded - groups).square().sum(1) for rounded in (found, in_sevenths(groups)))
    assert bool((next(sums) <= next(sums) * 1.001 + 1e-12).all())


GRIDS = st.tuples(
    st.sampled_from([4, 2]), st.integers(0, 2**32 - 1), st.sampled_from([16, 64, 200])
)


@given(GRIDS, st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=100, deadline=None)
def test_rows_trained_for_these_bits_keep_their_integers(grid, stored_as):
    """As ai-edge-quantizer's recovery finds them."""
    bits, seed, num_columns = grid
    draw = np.random.default_rng(seed)
    integers = draw.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, num_columns), np.int8)
    integers[:, :2] = 1, -2  # not all are even
    scales = draw.uniform(1e-3, 10, (5, 1)).astype(np.float32)
    rows = torch.from_numpy(integers * scales).to(stored_as).float()

    found, data = quantize_rows(rows, WeightType(bits, keep_grid=True))

    np.testing.assert_array_equal(unpacked(data, bits).reshape(integers.shape), integers)
    np.testing.assert_allclose(found, scales[:, 0], rtol=1e-6 if stored_as.itemsize == 4 else 4e-3)
    if stored_as == torch.float32:
        _, theirs = recovery.get_zp_scale_from_dequantized_symmetric_weights(rows.numpy(), 0)
        np.testing.assert_allclose(found, theirs[:, 0], rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 2])
def test_rows_that_were_not_are_quantized_as_ever(bits):
    rows = torch.randn(200, 96, generator=torch.Generator().manual_seed(bits))
    rows[7] = 0.0
    found = quantize_rows(rows, WeightType(bits, keep_grid=True))
    expected = quantize_rows(rows, WeightType(bits))
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_one_number_off_the_grid_is_enough():
    rows = torch.ones(1, 500)
    rows[0, 400] = 0.3
    scales, _ = quantize_rows(rows, WeightType(4, keep_grid=True))
    assert scales == np.float32(1) / np.float32(7)


def test_float32_rows_are_stored_as_they_are():
    rows = torch.randn(3, 5)
    scales, data = quantize_rows(rows, WeightType(32))
    assert scales.size == 0
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), rows.numpy().reshape(-1))


def test_float16_rows_are_rounded_and_never_infinite():
    rows = torch.tensor([[1.0, 1e-9, 65504.0, 0.1]])
    scales, data = quantize_rows(rows, WeightType(16))
    assert scales.size == 0
    np.testing.assert_array_equal(np.frombuffer(data, np.float16), rows.half().numpy()[0])
    with pytest.raises(ExportError, match="w: 70000 is among its numbers, float16 ends at 65504"):
        list(quantize(OneMatrix(torch.tensor([[1.0, -7e4]])), "w", WeightType(16)))


class OneMatrix:
    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix
        self.most_rows = 0

    def packed(self, _name):
        return None

    def shape(self, _name: str) -> tuple[int, ...]:
        return tuple(self.matrix.shape)

    def rows(self, _name: str, start: int, stop: int) -> torch.Tensor:
        self.most_rows = max(self.most_rows, stop - start)
        return self.matrix.flatten(0, -2)[start:stop]


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 2])
@pytest.mark.parametrize("num_rows", [1, 7, 8, 9])
def test_chunks_join_to_the_whole_and_bound_the_rows_in_memory(monkeypatch, bits, num_rows):
    source = OneMatrix(torch.randn(num_rows, 8))
    monkeypatch.setattr(arithmetic_module, "CHUNK_BYTES", 4 * 4 * 8)
    whole_scales, whole = quantize_rows(source.matrix, WeightType(bits))

    chunks = list(quantize(source, "w", WeightType(bits)))

    assert b"".join(chunk.data for chunk in chunks) == whole
    np.testing.assert_array_equal(np.concatenate([c.scales for c in chunks]), whole_scales)
    assert source.most_rows <= 4


@pytest.mark.parametrize("weight_type", [WeightType(32), WeightType(8), WeightType(4, 32)], ids=str)
def test_a_stack_is_one_matrix_below_the_other(monkeypatch, weight_type):
    stack = OneMatrix(torch.randn(3, 5, 64))
    monkeypatch.setattr(arithmetic_module, "CHUNK_BYTES", 4 * 4 * 64)
    wanted = [quantize_rows(matrix, weight_type) for matrix in stack.matrix]

    chunks = list(quantize(stack, "w", weight_type))

    assert b"".join(chunk.data for chunk in chunks) == b"".join(data for _, data in wanted)
    np.testing.assert_array_equal(
        np.concatenate([chunk.scales for chunk in chunks]),
        np.concatenate([scales for scales, _ in wanted]),
    )
    assert stack.most_rows <= 4


def q4_0_values(num_groups: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights that q4_0 has been through, as unquantized checkpoints hold them; integers, scales.

    Source: llama.cpp, ggml-quants.c, quantize_row_q4_0_ref: the largest value becomes -8.
    """
    groups = torch.randn(num_groups, 32, generator=torch.manual_seed(seed)) * 0.02
    largest = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    integers = (groups / (largest / -8) + 8.5).floor().clamp(0, 15) - 8
    scales = (largest / -8).half().float()
    return (integers * scales).bfloat16().float(), integers, scales


def restored(rows: torch.Tensor) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    scales, data = quantize_rows(rows, WeightType(4, 32))
    integers = unpacked(data, 4).reshape(rows.shape)
    groups = integers.reshape(*scales.shape, 32) * scales[..., None]
    return torch.from_numpy(groups.reshape(integers.shape)), integers, scales


def in_sevenths(groups: torch.Tensor) -> torch.Tensor:
    """What the scale of any other group makes of these."""
    scales = (groups.abs().amax(1, keepdim=True).clamp_min(1e-9) / 7).bfloat16().float()
    return (groups / scales).round().clamp(-8, 7) * scales


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_weights_trained_for_q4_0_keep_its_integers():
    groups, integers, scales = q4_0_values(2000, 1)
    found, found_integers, found_scales = restored(groups)
    # XNNPACK wants a positive scale, and there is no 8.
    expected = (integers * scales.sign()).clamp(-8, 7)
    same = (found_integers == expected.numpy()).all(axis=1)
    assert same.mean() > 0.99  # in some groups of many large values a seventh is nearer
    np.testing.assert_allclose(found_scales[same], scales.abs()[same], rtol=2**-7)
    exact = same & (scales > 0).numpy()[:, 0]
    assert exact.mean() > 0.45
    assert error(found[exact], groups[exact]) < 0.004  # bfloat16's
    assert error(in_sevenths(groups), groups) > 0.09
    assert error(found, groups) < 0.05


def test_groups_on_the_grid_are_found_among_others():
    on_grid, integers, scales = q4_0_values(40, 2)
    others = torch.randn(40, 32, generator=torch.manual_seed(3))
    zeros = torch.zeros(1, 32)
    found, found_integers, _ = restored(torch.cat((others, on_grid, zeros)))
    assert torch.equal(found[:40], in_sevenths(others))
    same = (found_integers[40:80] == (integers * scales.sign()).clamp(-8, 7).numpy()).all(axis=1)
    assert same.mean() > 0.9
    assert torch.equal(found[80:], zeros)


def test_a_group_of_equal_values_stays_one():
    groups = torch.full((3, 32), 0.5) * torch.tensor([[1.0], [-1.0], [0.0]])
    found, _, _ = restored(groups)
    torch.testing.assert_close(found, groups, rtol=2**-8, atol=0)
