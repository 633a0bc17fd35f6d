"""What the made .pte consists of: delegates, what stays outside and why, the shared KV rows."""

import pytest

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.quantize import DRAFTER_PREFIX, load_recipe, plan, size_bytes
from tests.end_to_end.conftest import RECIPES
from tests.exporter.lower.executorch.programs import Plan, read_plans

# Attention and the reshapes around it cut a layer into three, and the drafter's head once more.
# With six layers in the target and four in the drafter, whatever the recipe; in int4 the columns
# of the embedding are swapped, which is one more.
NUM_DELEGATES = {"fill": 9, "finish": 13, "draft": 9}
SWAPPED = {"fill": 10, "finish": 13, "draft": 10}
# What XNNPACK does not take, and why it stays outside.
UNDELEGATED = {
    "aten::_local_scalar_dense": "reads the position, which the sizes depend on",
    "aten::sym_size": "reads the number of tokens",
    "executorch_prim::add": "sizes",
    "executorch_prim::sub": "sizes",
    "executorch_prim::mul": "sizes",
    "executorch_prim::et_view": "no work: a reshape of dynamic size",
    "aten::arange": "positions, once a call",
    "aten::add": "positions, once a call",
    "aten::sub": "distances for the window's mask, once a call",
    "aten::clamp": "the window's first row, once a call",
    "aten::ge": "the window's mask, once a call",
    "aten::lt": "the window's mask, once a call",
    "aten::logical_and": "the window's mask, once a call",
    "aten::where": "the window's mask, once a call",
    "aten::scalar_tensor": "the window's mask, once a call",
    "aten::_to_copy": "integers to floating point, once a call",
    "aten::embedding": "gathers rows of the tables",
    "quantized_decomposed::embedding_byte": "gathers rows of the tables",
    "quantized_decomposed::embedding_4bit": "gathers rows of the tables",
    "aten::slice_copy": "halves for the rotation (XNNPACK slices no dynamic shape); window rows",
    "aten::select_copy": "one layer's share of the per-layer embeddings",
    "aten::unsqueeze_copy": "no work worth naming",
    "llama::update_cache": "writes KV rows in place",
    "llama::custom_sdpa": "attention over the rows present",
    "aten::topk": "the centroid head",
    "aten::index": "the centroid head",
    "aten::mm": "the centroid head: its matrix is gathered",
    "aten::amin": "the centroid head",
    "aten::expand_copy": "the centroid head",
    "aten::scatter": "the centroid head",
}
GATHERS = {
    "float32": "aten::embedding",
    "int8": "quantized_decomposed::embedding_byte",
    "int4": "quantized_decomposed::embedding_4bit",
}


@pytest.fixture(scope="module", params=RECIPES)
def plans(request, export_tiny) -> dict[str, Plan]:
    return read_plans(export_tiny(request.param) / "model.pte")


@pytest.fixture(scope="module")
def swapped(plans) -> bool:
    return any(GATHERS["int4"] in method.operators for method in plans.values())


@pytest.fixture(scope="module")
def spec(tiny):
    return read_checkpoint(tiny.model).spec


def test_delegates_are_few(plans, swapped):
    """A norm or a linear that falls apart would make dozens of them."""
    expected = SWAPPED if swapped else NUM_DELEGATES
    assert {name: method.num_delegates for name, method in plans.items()} == expected


def test_nothing_unexplained_stays_outside_xnnpack(plans):
    for method in plans.values():
        assert not set(method.operators) - set(UNDELEGATED)


def test_every_method_finds_the_rows_at_the_same_place(plans, spec):
    places = [method.buffers for method in plans.values()]
    owners = [layer.index for layer in spec.kv_layers]
    assert len(places) == 3
    assert set(places[0]) == {f"kv.{kind}_{index}" for kind in "kv" for index in owners}
    assert places[0] == places[1] == places[2]


def test_no_copy_of_the_whole_cache(plans, spec):
    """Two writes per owning layer, in place; a window is copied once for all that share it."""
    operators = {name: method.operators for name, method in plans.items()}
    assert operators["fill"]["llama::update_cache"] == 2 * len(spec.kv_layers)
    assert "llama::update_cache" not in {*operators["finish"], *operators["draft"]}
    assert operators["draft"]["aten::slice_copy"] == 2
    calls = [operators[name]["llama::custom_sdpa"] for name in ("fill", "finish")]
    assert sum(calls) == len(spec.layers)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_decides_how_the_tables_are_stored(export_tiny, recipe):
    operators = read_plans(export_tiny(recipe) / "model.pte")["fill"].operators
    found = {name: operators.get(name, 0) for name in GATHERS.values()}
    assert found == {name: 2 * (name == GATHERS[recipe]) for name in GATHERS.values()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_file_holds_every_weight_once(export_tiny, tiny, recipe):
    """Neither the tied embedding twice nor, in a method, weights that only another uses."""
    target = read_checkpoint(tiny.model)
    drafter = read_drafter(tiny.drafter, target)
    loaded = load_recipe(recipe)
    needed = 0
    for prefix, checkpoint in (("", target), (DRAFTER_PREFIX, drafter)):
        for name, kind in plan(checkpoint, loaded, prefix).items():
            shape = checkpoint.shape(name)
            scales = 4 * shape[0] if kind.bits < 32 else 0
            needed += size_bytes(shape, kind) + scales
    found = (export_tiny(recipe) / "model.pte").stat().st_size
    assert needed < found < needed + 300_000  # graphs and padding
