"""The committed table of sizes is what the data and the refusals say."""

import pytest

from exporter.config import known_sizes
from tests.size_table import CHECKED, MODELS, OUT, RUNS, Table, generate, refused


def test_the_committed_page_is_up_to_date():
    """If not: python -m tests.size_table"""
    assert OUT.read_text(encoding="utf-8") == generate()


def test_every_size_has_its_rows():
    assert sorted(MODELS) == known_sizes()


@pytest.mark.parametrize(
    ("size", "runtime", "recipe", "reason"),
    [
        ("26b-a4b", "litert", "int4", "experts are chosen while it runs"),
        ("26b-a4b", "executorch", "int4", "experts are chosen while it runs"),
        ("e2b", "litert", "int4-groups", "one scale for every 32 weights"),
        ("31b", "executorch", "mobile", "ExecuTorch's XNNPACK"),
    ],
)
def test_a_refusal_is_the_runtimes_own(size, runtime, recipe, reason):
    assert reason in refused(size, runtime, recipe)


def test_nothing_is_refused_by_onnx():
    assert not any(refused(size, "onnx", "mobile") for size in MODELS)


def test_a_word_is_earned():
    """By the largest that was checked; what passed at small widths only is not called checked."""
    small = {"e2b": {"onnx": {"int8": {"passed": True}, "int4": {"passed": False}}}}
    assert Table({}, small).cell("e2b", "onnx", "int8") == f"{RUNS}¹"
    assert Table({}, small).cell("e2b", "onnx", "int4") == "fails"
    assert Table({}, {}).cell("e2b", "onnx", "int4") == "not tried"
    assert Table({}, {"tiny": small["e2b"]}).cell("tiny", "onnx", "int8") == f"**{CHECKED}**"
    cells = {}
    for layers, passed in ((4, True), (12, True)):
        cell = {"size": "e2b", "runtime": "onnx", "recipe": "int8", "layers": layers}
        cells[str(layers)] = cell | {"check": {"report": {"passed": passed}}}
    assert Table(cells, small).cell("e2b", "onnx", "int8") == f"**{CHECKED}**, 12 of 35 layers"
    cells["35"] = cells["4"] | {"layers": 35}
    assert Table(cells, small).cell("e2b", "onnx", "int8") == f"**{CHECKED}**"
    cells["35"]["check"] = {"failed": "no room"}
    assert Table(cells, small).cell("e2b", "onnx", "int8") == f"**{CHECKED}**, 12 of 35 layers"
