"""Weights that ExecuTorch no longer needs are freed, and the file says the same."""

import gc
import weakref

import pytest
import torch

from exporter.lower.executorch import program
from tests.exporter.lower.executorch.test_one_copy import STORED_BITS, TOKEN_IDS, Tied


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
    monkeypatch.setattr(program, "forget_delegated_weights", lambda _edge: None)
    monkeypatch.setattr("exporter.lower.executorch.memory.setattr", lambda *_: None, raising=False)
    monkeypatch.setattr("exporter.lower.executorch.memory.delattr", lambda *_: None, raising=False)
    write(recipe, plain, [])
    assert thrifty.read_bytes() == plain.read_bytes()


def write(recipe, out, storages) -> None:
    """Append, before the work, a weak reference to what the head's matrix lies in."""
    module = Tied(recipe, tied=True).eval()
    head = module.head.weight if recipe == "float32" else module.head.values
    storages.append(weakref.ref(head.untyped_storage()))
    method = program.Method(module, (TOKEN_IDS,), None)
    program.write_program({"forward": method}, {}, {}, out, lambda _done, _total: None)
    assert torch.is_tensor(head)
