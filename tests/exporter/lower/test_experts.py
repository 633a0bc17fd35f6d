"""Where experts cannot run well they are refused by name, before any work."""

import pytest

from exporter.checkpoint.reader import read_checkpoint
from exporter.errors import ExportError
from exporter.lower import executorch, litert, onnx
from exporter.quantize import load_recipe, plan
from tests.exporter import tiny_models


@pytest.fixture(scope="module")
def types(tmp_path_factory):
    shape = tiny_models.A4B_26B
    folder = tiny_models.save(tiny_models.target_model(shape, 1), tmp_path_factory.mktemp("a4b"))
    return plan(read_checkpoint(folder), load_recipe("int8"))


@pytest.mark.parametrize(
    ("lowering", "reason"),
    [(litert, "LiteRT"), (executorch, "XNNPACK")],
    ids=["litert", "executorch"],
)
def test_experts_are_refused_with_the_reason_and_the_runtime_that_takes_them(
    types, lowering, reason
):
    with pytest.raises(ExportError, match=r"layers\.0\.experts\.gate_up_proj: ") as refused:
        lowering.LOWERING.check(types)
    assert reason in str(refused.value)
    assert str(refused.value).endswith("--runtime onnx")


def test_onnx_takes_them(types):
    onnx.LOWERING.check(types)
