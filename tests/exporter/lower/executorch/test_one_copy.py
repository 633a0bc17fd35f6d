"""A tied matrix lies in a .pte once, and whoever reads the file finds it twice."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from exporter.errors import ExportError
from exporter.lower.executorch import one_copy
from exporter.lower.executorch.program import Method, write_program
from exporter.lower.executorch.weights import Integers, QuantizedLinear, QuantizedTable
from runtime_py.formats.weight_names import KEY, write_names
from runtime_py.inspection import INSPECT

NUM_ROWS, NUM_COLUMNS, GROUP = 512, 64, 32
STORED_BITS = {"float32": 32, "int8": 8, "int4": 4, "int4-groups": 4}
TOKEN_IDS = torch.tensor([[3, 0, NUM_ROWS - 1]])
SCALE = 3.0


@dataclass(frozen=True)
class Written:
    """The same model with the tied matrix once and, as ExecuTorch writes it, twice."""

    recipe: str
    once: Path
    twice: Path

    @property
    def table_bytes(self) -> int:
        return NUM_ROWS * NUM_COLUMNS * STORED_BITS[self.recipe] // 8


class Tied(nn.Module):
    """token_ids [1, T] -> rows [1, T, D], logits [1, T, V]."""

    def __init__(self, recipe: str, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        if recipe == "float32":
            self.table = nn.Embedding(NUM_ROWS, NUM_COLUMNS).requires_grad_(False)
            self.head = nn.Linear(NUM_COLUMNS, NUM_ROWS, bias=False).requires_grad_(False)
            self.head.weight = self.table.weight
            return
        integers = drawn(recipe)
        self.table = QuantizedTable(integers, SCALE, tied)
        self.head = QuantizedLinear(integers)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.table(token_ids)
        return rows, self.head(rows)


def drawn(recipe: str) -> Integers:
    shape = (NUM_ROWS, NUM_COLUMNS // (2 if recipe != "int8" else 1))
    dtype = torch.int8 if recipe == "int8" else torch.uint8
    values = torch.randint(0, 256, shape).to(torch.uint8).view(dtype)
    groups = (NUM_COLUMNS // GROUP,) if recipe == "int4-groups" else ()
    # XNNPACK keeps the scales of groups as bfloat16.
    return Integers(values, torch.rand(NUM_ROWS, *groups).bfloat16().float() + 1.0)


def write(recipe: str, out: Path, tied: bool) -> Path:
    method = Method(Tied(recipe, tied).eval(), (TOKEN_IDS,), None)
    names = {KEY: write_names({})}
    write_program({"forward": method}, {"answer": 42}, names, out, lambda _done, _total: None)
    return out


def write_twice(emitted, out: Path) -> None:
    with out.open("wb") as file:
        emitted.write(file)


@pytest.fixture(
    scope="module",
    params=["int4", *(pytest.param(r, marks=pytest.mark.slow) for r in STORED_BITS if r != "int4")],
)
def written(request, tmp_path_factory) -> Written:
    folder = tmp_path_factory.mktemp("one_copy")
    once = write(request.param, folder / "once.pte", tied=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporter.lower.executorch.program.write_once", write_twice)
        twice = write(request.param, folder / "twice.pte", tied=False)
    return Written(request.param, once, twice)


def run(path: Path) -> list[Tensor]:
    """In ExecuTorch's own Python runtime: what it reads, other apps can read."""
    import executorch.kernels.quantized  # noqa: F401  embeddings of integers
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    return [output.clone() for output in program.load_method("forward").execute([TOKEN_IDS])]


def test_rows_and_logits_are_those_of_two_copies_to_the_bit(written):
    rows, logits = run(written.once)
    expected_rows, expected_logits = run(written.twice)
    assert rows.abs().max() > 1
    assert torch.equal(rows, expected_rows)
    assert torch.equal(logits, expected_logits)


def test_the_file_is_smaller_by_the_table(written):
    saved = written.twice.stat().st_size - written.once.stat().st_size
    assert saved > written.table_bytes - 4096


def test_inspect_shows_one_matrix_with_two_uses(written):
    (matrix,) = INSPECT["executorch"](written.once).weights
    assert matrix.uses == ("lookup", "matmul")
    assert matrix.size_bytes == written.table_bytes
    twice = INSPECT["executorch"](written.twice).weights
    assert sorted(use for matrix in twice for use in matrix.uses) == ["lookup", "matmul"]


def test_the_parts_of_the_file_do_not_overlap(written):
    found = INSPECT["executorch"](written.once)
    assert sum(section.size_bytes for section in found.sections) <= written.once.stat().st_size


@dataclass(frozen=True)
class OtherLayout:
    """Has the constants where the data should be."""

    written: Path
    constants = (bytes(one_copy.WORTH_BYTES),)
    named: ClassVar = {KEY: constants[0]}

    def write_without(self, _constants, _first, file) -> None:
        file.write(self.written.read_bytes())


def test_another_layout_of_the_file_is_refused(written, tmp_path):
    with pytest.raises(ExportError, match="is not where it was put"):
        one_copy.write_once(OtherLayout(written.twice), tmp_path / "model.pte")
