"""Quantization changed the types it says it changed: what the made files hold is the plan."""

import json

import pytest

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.quantize import DRAFTER_PREFIX, WeightType, load_recipe, plan
from runtime_py.bundle.bundle import Bundle
from runtime_py.device.device import this_device
from runtime_py.doctor.doctor import bundle_fits
from runtime_py.inspection import Findings, inspect_bundle
from runtime_py.inspection.memory import memory_of, total_bytes
from tests.benchmarks.memory import tiny_work
from tests.end_to_end.conftest import RUNTIMES, run

BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "int2": 2}


@pytest.fixture(scope="module")
def checkpoints(tiny):
    target = read_checkpoint(tiny.model)
    return {"": target, DRAFTER_PREFIX: read_drafter(tiny.drafter, target)}


@pytest.fixture
def found(export_tiny, recipe, runtime) -> Findings:
    return inspect_bundle(Bundle.open(export_tiny(recipe)), runtime)


def planned(checkpoints, recipe) -> dict[str, tuple[tuple[int, ...], WeightType]]:
    """Matrix -> shape and type, with the drafter's prefix."""
    return {
        prefix + name: (tuple(checkpoint.shape(name)), kind)
        for prefix, checkpoint in checkpoints.items()
        for name, kind in plan(checkpoint, load_recipe(recipe), prefix).items()
        if len(checkpoint.shape(name)) == 2
    }


def test_every_matrix_is_in_the_file_as_the_recipe_says(found, checkpoints, recipe):
    expected = planned(checkpoints, recipe)
    assert {weight.name for weight in found.weights} == set(expected)
    for weight in found.weights:
        shape, kind = expected[weight.name]
        found_type = BITS[weight.dtype], weight.group_size
        assert (weight.shape, *found_type) == (shape, kind.bits, kind.group_size), weight


def test_vectors_stay_float32(found):
    others = {constant.dtype for constant in found.constants if len(constant.shape) <= 1}
    assert others <= {"float32", "int32", "int64", "bool"}


def test_kv_rows_are_those_of_the_manifest_and_parts_add_up(found, export_tiny, recipe):
    context = Bundle.open(export_tiny(recipe)).manifest.model.context_length
    assert {buffer.num_rows for buffer in found.kv} == {context}
    # Two sliding layers of 32 numbers and a full one of 64, keys and values, four bytes each.
    assert found.kv_bytes_per_token == 2 * 4 * (32 + 32 + 64)
    windows = {
        ("2" in buffer.name, buffer.window) for buffer in found.kv
    }  # layer 2 is the full one
    assert windows == {(False, 128), (True, None)}
    assert sum(found.parts.values()) == found.size_bytes
    assert all(size >= 0 for size in found.parts.values())


def test_export_doctor_and_inspect_say_the_same_memory(found, export_tiny, recipe, runtime):
    foreseen = total_bytes(memory_of(runtime, tiny_work(recipe).contents(runtime)))
    fits = bundle_fits(Bundle.open(export_tiny(recipe)), this_device())
    [needed] = [fit.need_bytes for fit in fits if fit.runtime == runtime]
    assert found.memory_bytes == needed == foreseen


def test_the_command_prints_one_object_and_needs_no_runtime(export_tiny):
    bundle = export_tiny("int8")
    done = run("gemma-run", "inspect", bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    values = json.loads(done.stdout)
    assert set(values["runtimes"]) == set(RUNTIMES)
    for found in values["runtimes"].values():
        assert {weight["dtype"] for weight in found["weights"]} == {"int8"}
        assert found["kv_bytes"] == 512 * found["kv_bytes_per_token"]


def test_types_are_folded_and_all_folds_nothing(export_tiny):
    bundle = export_tiny("int4")
    short = run("gemma-run", "inspect", bundle, "--runtime", "onnx").stdout
    long = run("gemma-run", "inspect", bundle, "--runtime", "onnx", "--all").stdout
    assert "up_proj" not in short
    assert "layers.1.mlp.up_proj.weight" in long
    assert "KV rows: float32, 1024 bytes per token" in short
    assert len(short.splitlines()) < len(long.splitlines())
