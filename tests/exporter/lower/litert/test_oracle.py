"""The road without weights gives what the plain road gives, to the bit.

The plain road: litert-torch converts the module with its weights, ai-edge-quantizer quantizes the
file. A new release of either is admitted only if this still holds.
"""

from itertools import chain
from pathlib import Path

import litert_torch
import numpy as np
import pytest
import torch
from ai_edge_quantizer import quantizer, recipe

from exporter.checkpoint.reader import read_checkpoint
from exporter.config import GraphShapes
from exporter.graph.target import Embedder, Target
from exporter.graph.weights import is_virtual, load_weights
from exporter.lower.litert.inject import inject
from exporter.lower.litert.modules import PRIMITIVES, embedder_signature, target_signatures
from exporter.lower.litert.skeleton import convert
from exporter.lower.litert.vendor import quiet
from exporter.quantize import WeightType, load_recipe, plan, size_bytes
from tests.exporter.lower.litert.files import read, run
from tests.exporter.tiny_models import Shape, save, target_model

# Without soft cap and PLE: there the plain road folds a constant into two weights, ours does not.
SHAPE = Shape(layers="sf", kv_heads=1, softcap=None)
SHAPES = GraphShapes(prefill_lengths=(), verify_widths=(), cache_length=8)  # decode alone
RECIPES = {
    8: recipe.dynamic_wi8_afp32,
    4: recipe.dynamic_wi4_afp32,
    2: recipe.dynamic_wi2c_afp32,
}


class Roads:
    """The same target by both roads, up to the step where the bits are chosen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = read_checkpoint(save(target_model(SHAPE, 2), folder / "checkpoint"))
        self.names: dict[str, list[str]] = {}
        for stem in ("embedder", "decoder"):
            real, virtual = self._module(stem, virtual=False), self._module(stem, virtual=True)
            weights = {n: p for n, p in virtual.named_parameters() if is_virtual(p)}
            skeleton = folder / f"{stem}.skeleton"
            self.names[stem] = convert(self._signatures(stem, virtual), weights, skeleton)
            converter = litert_torch
            for one in self._signatures(stem, real):
                converter = converter.signature(
                    one.name, one.module.eval(), sample_kwargs=dict(one.sample)
                )
            with quiet():
                model = converter.convert(strict_export=False)
                model.export(str(folder / f"{stem}.plain"))

    def ours(self, stem: str, bits: int) -> Path:
        types = {
            name: WeightType(bits if len(self.checkpoint.shape(name)) == 2 else 32)
            for name in self.checkpoint.names()
        }
        return self.stored_as(stem, types)

    def stored_as(self, stem: str, types: dict[str, WeightType]) -> Path:
        out = self.folder / f"{stem}.ours.tflite"
        inject(self.folder / f"{stem}.skeleton", self.names[stem], self.checkpoint, types, out)
        return out

    def theirs(self, stem: str, bits: int) -> Path:
        plain = self.folder / f"{stem}.plain"
        if bits == 32:
            return plain
        out = self.folder / f"{stem}.theirs{bits}.tflite"
        made = quantizer.Quantizer(str(plain), RECIPES[bits]())
        made.quantize(enable_progress_report=False).export_model(str(out), overwrite=True)
        return out

    def _module(self, stem: str, *, virtual: bool) -> Embedder | Target:
        spec = self.checkpoint.spec
        module = Embedder(spec) if stem == "embedder" else Target(spec, PRIMITIVES)
        load_weights(module, self.checkpoint, virtual=virtual)
        return module

    def _signatures(self, stem: str, module):
        if stem == "embedder":
            return [embedder_signature(module, stem)]
        return target_signatures(module, SHAPES)


@pytest.fixture(scope="module")
def roads(tmp_path_factory) -> Roads:
    return Roads(tmp_path_factory.mktemp("oracle"))


@pytest.mark.parametrize("bits", [32, 8, 4, 2])
@pytest.mark.parametrize("stem", ["embedder", "decoder"])
def test_weights_and_scales_are_bit_identical(roads, stem, bits):
    ours, theirs = read(roads.ours(stem, bits)), read(roads.theirs(stem, bits))
    name = {32: "FLOAT32", 8: "INT8", 4: "INT4", 2: "INT2"}[bits]
    assert [len(uses) for uses in ours.weights()] == [len(uses) for uses in theirs.weights()]
    pairs = zip(chain(*ours.weights()), chain(*theirs.weights()), strict=True)
    for mine, yours in pairs:
        assert (mine.type, mine.shape) == (yours.type, yours.shape) == (name, mine.shape)
        assert mine.data == yours.data
        if bits < 32:
            np.testing.assert_array_equal(mine.scales, yours.scales)


@pytest.mark.parametrize("bits", [32, 8, 4, 2])
def test_outputs_are_bit_identical(roads, bits):
    generator = torch.manual_seed(5)
    signature = target_signatures(Target(roads.checkpoint.spec), SHAPES)[-1]
    inputs = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in signature.sample.items()
        if name not in ("kv_cache", "input_pos")
    }
    inputs |= {"input_pos": torch.tensor([3], dtype=torch.int32)}
    inputs |= {
        f"kv_cache_{name}": torch.randn(tensor.shape, generator=generator)
        for name, tensor in signature.sample["kv_cache"].items()
    }
    ours = run(roads.ours("decoder", bits), signature.name, **inputs)
    theirs = run(roads.theirs("decoder", bits), signature.name, **inputs)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_recipe_that_mixes_types_is_followed_tensor_by_tensor(roads, tmp_path):
    path = tmp_path / "mixed.toml"
    path.write_text(
        '[[rule]]\npattern = "*.q_proj.weight"\nbits = 8\n'
        '[[rule]]\npattern = "*.mlp.*"\nbits = 4\n'
        '[[rule]]\npattern = "*"\nbits = 32\n'
    )
    types = plan(roads.checkpoint, load_recipe(path))
    file = read(roads.stored_as("decoder", types))
    for weight in chain(*file.weights()):
        bits = 8 if "q_proj" in weight.name else 4 if ".mlp." in weight.name else 32
        assert weight.type == {32: "FLOAT32", 8: "INT8", 4: "INT4"}[bits], weight.name
        assert len(weight.data) == size_bytes(weight.shape, WeightType(bits))
        assert (weight.scales is None) == (bits == 32)
    assert {weight.type for weight in chain(*file.weights())} == {"FLOAT32", "INT8", "INT4"}
