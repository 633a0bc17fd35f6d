"""The estimate printed before an export: beside what was measured, and the laws it keeps."""

import json
import logging
import shutil
from dataclasses import replace

import pytest

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.config import GraphShapes, KvType, load_size
from exporter.errors import ExportError
from exporter.estimate.export import (
    MB,
    Estimate,
    count_passes,
    estimate,
    refuse_large_page,
    refuse_small_disk,
    report_estimate,
)
from exporter.estimate.work import Work, measure_work
from exporter.original.record import reference_size
from exporter.quantize import load_recipe, plan, size_bytes
from runtime_py.bundle.kv_rows import MARGIN, STEP
from runtime_py.inspection.memory import total_bytes
from runtime_py.inspection.sizes import known_sizes
from tests.benchmarks.full_size import read_estimate, undisturbed_s
from tests.benchmarks.record import RESULTS
from tests.virtual import virtual_pair

MEASURED = RESULTS / "full_size.json"
CELLS = json.loads(MEASURED.read_text())["cells"] if MEASURED.exists() else {}
TOLERANCE = 0.2
RUNTIMES = ("litert", "executorch", "onnx")
SHAPES = GraphShapes(cache_length=4096)
SYNTHETIC_TEXT_BYTES = 6_653_265  # of tests.make_checkpoint's tokenizer for 262144 tokens


def work_of(
    size: str,
    recipe: str = "int4",
    layers: int | None = None,
    shapes: GraphShapes = SHAPES,
    kv: KvType = "float32",
) -> Work:
    if size == "tiny":
        source = load_size("tiny")
        target = read_checkpoint(source.model)
        drafter = read_drafter(source.drafter, target)
        text_bytes = (source.model / "tokenizer.json").stat().st_size
    else:
        target, drafter = virtual_pair(size, layers)
        text_bytes = SYNTHETIC_TEXT_BYTES
    return measure_work(target, drafter, load_recipe(recipe), shapes, text_bytes, kv)


def estimate_of(work: Work, *runtimes: str, prompt_lengths=(20,) * 8) -> Estimate:
    size = reference_size(work.multiplied.num_weights, draft_length=3)
    return estimate(work, count_passes(work, size, prompt_lengths), runtimes)


def measured(cell) -> dict[str, float]:
    """The figures of a cell that an estimate has, too."""
    export = cell.get("export", {})
    names = ("peak MB", "disk MB", "bundle MB")
    figures = {name: export[name] for name in names if name in export}
    if "speed" in export:  # seconds of a machine whose speed nobody knows say nothing
        figures["seconds"] = undisturbed_s(export)
    memory = cell.get("memory", {})
    kept = memory.get("second load") or memory.get("as it is") or {}
    if "resident MB" in kept:
        figures["device MB"] = sum(list(kept["resident MB"].values())[-1].values())
    return figures


@pytest.mark.parametrize(
    ("key", "figure"), [(key, figure) for key, cell in CELLS.items() for figure in measured(cell)]
)
def test_what_was_measured_is_within_a_fifth(key, figure):
    cell = CELLS[key]
    export = cell["export"]
    shapes = GraphShapes(
        prefill_lengths=tuple(export.get("prefill lengths", (128, 1024))),
        verify_widths=tuple(export.get("verify widths", (2, 4, 8))),
        cache_length=export["context"],
    )
    work = work_of(cell["size"], cell["recipe"], cell["layers"], shapes)
    lengths = export.get("prompt lengths", (20,) * 8)
    found = estimate_of(work, cell["runtime"], prompt_lengths=lengths)
    [memory] = found.devices.values()
    estimated = {
        "seconds": found.seconds,
        "peak MB": found.peak_bytes / MB,
        "disk MB": found.disk_bytes / MB,
        "bundle MB": found.bundle_bytes / MB,
        "device MB": total_bytes(memory) / MB,
    }
    assert estimated[figure] == pytest.approx(measured(cell)[figure], rel=TOLERANCE)


@pytest.mark.parametrize("recipe", ["float32", "int8", "int4", "int4-groups", "mobile"])
def test_every_matrix_is_counted_once(recipe):
    source = load_size("tiny")
    target = read_checkpoint(source.model)
    types = plan(target, load_recipe(recipe))
    shapes = {name: target.shape(name) for name in types if len(target.shape(name)) > 1}
    work = measure_work(target, None, load_recipe(recipe), GraphShapes(), 0)
    assert work.stored.size_bytes == sum(size_bytes(s, types[n]) for n, s in shapes.items())
    assert work.stored.num_scales == sum(
        (size_bytes(s, replace(types[n], bits=8)) // (types[n].group_size or s[-1]))
        for n, s in shapes.items()
        if types[n].is_integer
    )


def test_a_model_of_two_thirds_of_the_layers_costs_less_of_everything():
    for runtime in RUNTIMES:
        some, all_of_it = (estimate_of(work_of("e2b", layers=n), runtime) for n in (24, 35))
        assert some.seconds < all_of_it.seconds
        assert some.peak_bytes <= all_of_it.peak_bytes  # or the recording has it
        assert some.disk_bytes < all_of_it.disk_bytes
        assert total_bytes(some.devices[runtime]) < total_bytes(all_of_it.devices[runtime])


def test_runtimes_add_up_on_the_disk_and_take_turns_in_memory():
    work = work_of("e2b")
    each = [estimate_of(work, runtime) for runtime in RUNTIMES]
    together = estimate_of(work, *RUNTIMES)
    assert together.bundle_bytes == sum(one.bundle_bytes for one in each) - 2 * work.text_bytes
    assert together.peak_bytes == max(one.peak_bytes for one in each)
    assert together.seconds < sum(one.seconds for one in each)
    assert set(together.devices) == set(RUNTIMES)


def test_kv_rows_are_the_contexts_in_full_layers_and_the_windows_in_sliding_ones():
    short, long = (
        work_of("12b", shapes=GraphShapes(cache_length=context)) for context in (2048, 4096)
    )
    # Eight KV heads of 256 in forty layers, and one of 512 in eight; keys and values, float32.
    sliding_rows = 1024 + 1 + MARGIN + STEP
    assert long.kv_bytes == 2 * 4 * (sliding_rows * 40 * 8 * 256 + 4096 * 8 * 512)
    more = 2 * 4 * 2048 * 8 * 512
    assert long.contents("litert") == replace(
        short.contents("litert"), kv_bytes=short.kv_bytes + more
    )


def test_int8_kv_rows_take_a_quarter_and_on_litert_room_to_be_widened():
    whole, rounded = (work_of("12b", kv=kv).contents("litert") for kv in ("float32", "int8"))
    assert 4 * rounded.kv_bytes == whole.kv_bytes
    # A full layer's row of 512, keys and values, float32, in target and drafter.
    assert rounded.widened_bytes == 2 * SHAPES.cache_length * 2 * 512 * 4
    assert whole.widened_bytes == 0


@pytest.mark.parametrize("recipe", ["int8", "int4", "mobile"])
@pytest.mark.parametrize("size", known_sizes(), ids=lambda size: size.name)
def test_doctor_says_the_same_of_a_published_size(size, recipe):
    work = work_of(size.name, recipe)
    for runtime in RUNTIMES:
        if size.runs_on(runtime, recipe):
            foreseen = total_bytes(estimate_of(work, runtime).devices[runtime])
            assert size.need_bytes(recipe, SHAPES.cache_length, runtime) == foreseen


def test_the_benchmark_reads_what_is_printed(caplog):
    found = estimate_of(work_of("e2b"), "litert")
    with caplog.at_level(logging.INFO, logger="exporter"):
        report_estimate(found)
    assert read_estimate("\n".join(caplog.messages)) == {
        "seconds": round(found.seconds),
        "peak MB": round(found.peak_bytes / MB),
        "disk MB": round(found.disk_bytes / MB),
        "bundle MB": round(found.bundle_bytes / MB),
        "device MB": round(total_bytes(found.devices["litert"]) / MB, -1),  # 1.74 GB
    }


def test_what_no_browser_holds_is_refused():
    refuse_large_page(work_of("tiny"))
    with pytest.raises(ExportError, match=r"WebAssembly holds 2147 MB, .* take \d{4} MB at least"):
        refuse_large_page(work_of("e2b", "int4", shapes=GraphShapes(verify_widths=(4,))))


def test_a_disk_with_room_for_less_is_refused(tmp_path, monkeypatch):
    found = estimate_of(work_of("e2b"), "litert")
    needed = round(found.disk_bytes)
    for free, refused in ((needed + MB, False), (needed - MB, True)):
        usage = shutil._ntuple_diskusage(10**12, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        if not refused:
            refuse_small_disk(found, tmp_path / "a" / "b")
            continue
        with pytest.raises(ExportError, match=f"{tmp_path}: the disk is too full: .* MB free"):
            refuse_small_disk(found, tmp_path / "a" / "b")
