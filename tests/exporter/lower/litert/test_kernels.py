"""LiteRT computes with the stored numbers of every type: what the types mean is the same there.

CompiledModel, which gemma-run uses, against the dequantized weights and int8 activations.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.compiled_model import CompiledModel
from torch import nn

from exporter.graph.layers import Linear, meta_parameter
from exporter.lower.litert.inject import inject
from exporter.lower.litert.skeleton import convert
from exporter.lower.litert.vendor import Signature
from exporter.quantize import WeightType
from tests.exporter.lower.litert.files import OPERATOR_NAMES, TYPE_NAMES, read
from tests.exporter.packing import dequantized

NUM_ROWS, NUM_COLUMNS = 48, 64
BITS = (32, 16, 8, 4, 2)
CHOSEN = (7, 0, NUM_ROWS - 1, 7, 21)


class Matrix:
    """A checkpoint of one matrix; trained for 2 bits, it has all four numbers in every row."""

    def __init__(self, *, trained: bool = False) -> None:
        generator = torch.Generator().manual_seed(4)
        self.matrix = torch.randn(NUM_ROWS, NUM_COLUMNS, generator=generator)
        if trained:
            scales = self.matrix[:, :1].abs() + 0.1
            shape = (NUM_ROWS, NUM_COLUMNS)
            self.matrix = scales * torch.randint(-2, 2, shape, generator=generator)

    def packed(self, _name):
        return None

    def shape(self, _name: str) -> tuple[int, int]:
        return NUM_ROWS, NUM_COLUMNS

    def rows(self, _name: str, start: int, stop: int) -> torch.Tensor:
        return self.matrix[start:stop]


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = meta_parameter(NUM_ROWS, NUM_COLUMNS)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(indices, self.weight)


class Chosen(nn.Module):
    """A product with some of the rows, as in a centroid head."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = meta_parameter(NUM_ROWS, NUM_COLUMNS)
        self.register_buffer("indices", torch.tensor(CHOSEN, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, nn.functional.embedding(self.indices, self.weight))


class Skeletons:
    """The ways to read a matrix, converted once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        linear, table = Linear(NUM_COLUMNS, NUM_ROWS), Table()
        self._convert("matmul", linear, torch.zeros(3, NUM_COLUMNS))
        self._convert("lookup", table, torch.zeros(1, 1, dtype=torch.int32))
        self._convert("lookups", Table(), torch.zeros(len(CHOSEN), dtype=torch.int32))
        self._convert("chosen", Chosen(), torch.zeros(1, NUM_COLUMNS))

    def _convert(self, name: str, module: nn.Module, sample: torch.Tensor) -> None:
        weight = torch.zeros(1, 1).expand(NUM_ROWS, NUM_COLUMNS)
        module.weight = nn.Parameter(weight, requires_grad=False)
        (argument,) = module.forward.__annotations__.keys() - {"return"}
        signature = Signature(name, module, {argument: sample})
        convert([signature], {"weight": module.weight}, self.folder / name)

    def stored(self, name: str, source: Matrix, kind: WeightType) -> CompiledModel:
        return CompiledModel.from_file(str(self.file(name, source, kind)))

    def file(self, name: str, source: Matrix, kind: WeightType) -> Path:
        out = self.folder / f"{name}.{kind.bits}.tflite"
        inject(self.folder / name, ["weight"], source, {"weight": kind}, out)
        return out


@pytest.fixture(scope="module")
def skeletons(tmp_path_factory) -> Skeletons:
    return Skeletons(tmp_path_factory.mktemp("kernels"))


def call(model: CompiledModel, inputs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    (given,), (taken,) = model.create_input_buffers(0), model.create_output_buffers(0)
    given.write(inputs)
    model.run_by_index(0, [given], [taken])
    return taken.read(int(np.prod(shape)), np.float32).reshape(shape)


def rounded_to_int8(x: np.ndarray) -> np.ndarray:
    """Asymmetric, row by row, as XNNPACK rounds activations."""
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    scale = (high - low) / 255
    zero = np.rint(-128 - low / scale)
    return (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale


@pytest.mark.parametrize("bits", BITS)
def test_a_product_is_that_of_the_stored_numbers(skeletons, bits):
    source = Matrix()
    model = skeletons.stored("matmul", source, WeightType(bits))
    x = np.random.default_rng(1).standard_normal((3, NUM_COLUMNS)).astype(np.float32)
    found = call(model, x, (3, NUM_ROWS))
    given = rounded_to_int8(x) if bits < 16 else x
    expected = given @ dequantized(source, "weight", WeightType(bits)).T
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [4, 2])
def test_a_product_with_what_was_trained_for_these_bits_is_exact(skeletons, bits):
    source, kind = Matrix(trained=True), WeightType(bits, keep_grid=True)
    assert np.allclose(dequantized(source, "weight", kind), source.matrix, rtol=1e-6)
    x = np.random.default_rng(2).standard_normal((3, NUM_COLUMNS)).astype(np.float32)
    found = call(skeletons.stored("matmul", source, kind), x, (3, NUM_ROWS))
    expected = rounded_to_int8(x) @ source.matrix.numpy().T
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bits", BITS)
def test_a_row_is_that_of_the_stored_numbers(skeletons, bits):
    source = Matrix()
    model = skeletons.stored("lookup", source, WeightType(bits))
    rows = dequantized(source, "weight", WeightType(bits))
    for index in (0, 5, NUM_ROWS - 1):
        found = call(model, np.array([[index]], np.int32), (NUM_COLUMNS,))
        np.testing.assert_array_equal(found, rows[index])


@pytest.mark.parametrize("bits", BITS)
def test_rows_that_nothing_multiplies_with_are_those_of_the_stored_numbers(skeletons, bits):
    source = Matrix()
    model = skeletons.stored("lookups", source, WeightType(bits))
    found = call(model, np.array(CHOSEN, np.int32), (len(CHOSEN), NUM_COLUMNS))
    rows = dequantized(source, "weight", WeightType(bits))[list(CHOSEN)]
    np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("bits", BITS)
def test_a_product_with_chosen_rows_is_that_of_the_stored_numbers(skeletons, bits):
    source = Matrix()
    model = skeletons.stored("chosen", source, WeightType(bits))
    x = np.random.default_rng(3).standard_normal((1, NUM_COLUMNS)).astype(np.float32)
    found = call(model, x, (1, len(CHOSEN)))
    expected = x @ dequantized(source, "weight", WeightType(bits))[list(CHOSEN)].T
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_chosen_int8_rows_are_gathered_as_integers(skeletons):
    file = read(skeletons.file("chosen", Matrix(), WeightType(8)))
    assert {"GATHER", "DEQUANTIZE", "MUL"} < file.operators()
    (subgraph,) = file.model.subgraphs
    used = {file.model.operatorCodes[o.opcodeIndex].builtinCode for o in subgraph.operators}
    assert "EMBEDDING_LOOKUP" not in {OPERATOR_NAMES[code] for code in used}
    (table,) = (tensor for tensor in subgraph.tensors if tensor.name == b"weight")
    assert TYPE_NAMES[table.type] == "INT8"
    assert list(table.quantization.scale) == [1.0]
