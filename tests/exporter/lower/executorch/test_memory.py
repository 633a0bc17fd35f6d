"""Weights that ExecuTorch no longer needs are freed, and the file says the same."""

import gc
import weakref

import pytest
import torch
from torch import nn

from exporter.lower.executorch import program
from exporter.lower.executorch.modules import MeanSquare
from tests.exporter.lower.executorch.test_one_copy import (
    NUM_COLUMNS,
    STORED_BITS,
    TOKEN_IDS,
    Tied,
)


class WithNorm(Tied):
    """With a buffer, which every method keeps: the mean's weights."""

    def __init__(self, recipe: str, tied: bool) -> None:
        super().__init__(recipe, tied)
        self.mean_square = MeanSquare(NUM_COLUMNS)

    def forward(self, token_ids):
        rows, logits = super().forward(token_ids)
        return self.mean_square(rows), logits


class Rows(nn.Module):
    """A method that uses neither the head nor the buffer."""

    def __init__(self, tied: Tied) -> None:
        super().__init__()
        self.tied = tied

    def forward(self, token_ids):
        return self.tied.table(token_ids)


@pytest.mark.parametrize(
    "recipe",
    ["int4", *(pytest.param(r, marks=pytest.mark.slow) for r in STORED_BITS if r != "int4")],
)
def test_the_file_is_the_one_that_executorch_writes_by_itself(recipe, tmp_path, monkeypatch):
    thrifty, plain = tmp_path / "thrifty.pte", tmp_path / "plain.pte"
    storages = []
    write(recipe, thrifty, storages)
    gc.collect()
    # A tied table of float32 is the head itself: it is still looked up.
    assert [storage() is None for storage in storages] == [recipe != "float32"]
    monkeypatch.setattr(program.vendor, "forget_delegated_weights", lambda _edge: None)
    monkeypatch.setattr("exporter.lower.executorch.vendor.setattr", lambda *_: None, raising=False)
    monkeypatch.setattr("exporter.lower.executorch.vendor.delattr", lambda *_: None, raising=False)
    write(recipe, plain, [])
    assert thrifty.read_bytes() == plain.read_bytes()


def write(recipe, out, storages) -> None:
    """Append, before the work, a weak reference to what the head's matrix lies in."""
    module = WithNorm(recipe, tied=True).eval()
    head = module.head.weight if recipe == "float32" else module.head.values
    storages.append(weakref.ref(head.untyped_storage()))
    methods = {
        name: program.Method(module, (TOKEN_IDS,), None)
        for name, module in (("forward", module), ("rows", Rows(module)))
    }
    program.write_program(methods, {}, {}, out, lambda _done, _total: None)
    assert torch.is_tensor(head)
