"""What each lowering writes is what the recipe planned, for every recipe that it takes.

On a small model of E2B's kind; the tiny model's own bundles are in tests/end_to_end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.checkpoint.reader import (
    DrafterCheckpoint,
    TargetCheckpoint,
    read_checkpoint,
    read_drafter,
)
from exporter.config import GraphShapes, known_recipes, load_size
from exporter.errors import ExportError
from exporter.lower import executorch, litert, onnx
from exporter.lower.executorch.lower import lower as lower_executorch
from exporter.lower.litert.lower import lower as lower_litert
from exporter.lower.litert.pack import pack, version_stamp
from exporter.lower.onnx.lower import lower as lower_onnx
from exporter.quantize import DRAFTER_PREFIX, Recipe, load_recipe, plan
from exporter.text.files import read_text_files
from runtime_py.inspection import INSPECT, Findings
from tests.exporter.tiny_models import Shape, save_pair

SHAPES = GraphShapes(prefill_lengths=(4,), verify_widths=(4,), cache_length=32)
DECODE = GraphShapes(prefill_lengths=(), verify_widths=(), cache_length=32)
SHAPE = Shape(
    layers="sfsf", hidden_size=32, intermediate_size=64, kv_heads=1, shared=2, doubled=True,
    head_dim=32, global_head_dim=64, per_layer=16, centroids=16, top_k=3, drafter_layers="sf",
    drafter_hidden=32,
)  # fmt: skip
BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "int2": 2}
LITERT = ("float16", "float32", "int4", "int8", "mobile")
ONNX = (*LITERT, "int4-groups")
EXECUTORCH = ("float32", "int4", "int4-groups", "int8")
TAKEN = {"litert": LITERT, "onnx": ONNX, "executorch": EXECUTORCH}
QUICK = ("litert-mobile",)  # a quarter of a minute each, and more on ExecuTorch


@dataclass(frozen=True)
class Pair:
    target: TargetCheckpoint
    drafter: DrafterCheckpoint

    def plan(self, recipe: Recipe) -> dict[str, tuple[tuple[int, ...], int, int]]:
        """Matrix -> shape, bits and group size; a group as long as its row is the row."""
        return {
            prefix + name: (
                tuple(checkpoint.shape(name)),
                kind.bits,
                kind.group_size if kind.group_size < checkpoint.shape(name)[1] else 0,
            )
            for prefix, checkpoint in (("", self.target), (DRAFTER_PREFIX, self.drafter))
            for name, kind in plan(checkpoint, recipe, prefix).items()
            if len(checkpoint.shape(name)) == 2
        }


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    target, drafter = save_pair(SHAPE, 1, tmp_path_factory.mktemp("pair"))
    checkpoint = read_checkpoint(target)
    return Pair(checkpoint, read_drafter(drafter, checkpoint))


def made_by_litert(pair: Pair, recipe: Recipe, folder: Path) -> Path:
    lower_litert(pair.target, pair.drafter, DECODE, recipe, folder)  # a graph for each width
    text = read_text_files(load_size("tiny").model)
    stamp = version_stamp(recipe.name, None)
    return pack(folder, text, SHAPES.cache_length, stamp, folder / "model.litertlm")


def made_by_onnx(pair: Pair, recipe: Recipe, folder: Path) -> Path:
    return lower_onnx(pair.target, pair.drafter, SHAPES, recipe, folder)[0]


def made_by_executorch(pair: Pair, recipe: Recipe, folder: Path) -> Path:
    lower_executorch(pair.target, pair.drafter, SHAPES, recipe, folder / "model.pte")
    return folder / "model.pte"


MAKE: dict[str, Callable[[Pair, Recipe, Path], Path]] = {
    "litert": made_by_litert,
    "onnx": made_by_onnx,
    "executorch": made_by_executorch,
}


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(f"{runtime}-{recipe}", marks=[] if quick else [pytest.mark.slow])
        for runtime, recipes in TAKEN.items()
        for recipe in recipes
        for quick in [f"{runtime}-{recipe}" in QUICK]
    ],
)
def test_the_files_hold_what_was_planned(pair, what, tmp_path):
    runtime, _, name = what.partition("-")
    recipe = load_recipe(name)
    found: Findings = INSPECT[runtime](MAKE[runtime](pair, recipe, tmp_path))
    stored = {w.name: (w.shape, BITS[w.dtype], w.group_size) for w in found.weights}
    assert stored == pair.plan(recipe)
    # Nothing is stored twice but ExecuTorch's tied table, once more as XNNPACK's head.
    assert len(found.weights) - len(stored) == (runtime == "executorch")
    # A scale for each row or group; LiteRT has those of every signature, with its zero points.
    scaled = [weight for weight in found.weights if BITS[weight.dtype] < 16]
    assert all(weight.scale_bytes >= 4 * weight.shape[0] for weight in scaled)
    assert {w.scale_bytes for w in found.weights if w not in scaled} <= {0}


@pytest.mark.parametrize("runtime", sorted(TAKEN))
@pytest.mark.parametrize("name", known_recipes())
def test_the_others_are_refused_before_any_work(pair, runtime, name):
    lowering = {"litert": litert, "onnx": onnx, "executorch": executorch}[runtime]
    types = plan(pair.target, load_recipe(name))
    if name in TAKEN[runtime]:
        lowering.LOWERING.check(types)
    else:
        with pytest.raises(ExportError, match=r"weight: .*; use .*--quantize (int4|float32)"):
            lowering.LOWERING.check(types)
