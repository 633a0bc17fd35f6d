"""Random valid pairs are exported and pass their check, whatever features they combine."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

from exporter.config import HubModel
from exporter.hub.snapshot import Hub, fetch
from exporter.pipeline import export
from runtime_py.backends import SessionOptions
from runtime_py.bundle.bundle import Bundle
from runtime_py.check.replay import CheckReport, check_bundle
from tests.end_to_end.fuzz import Case, draw_case, save_case, with_recipe
from tests.exporter.hub.fake_hub import COMMIT, fake_hub

NUM_VALID = 200
# What a recipe of 8 bits may fail on with random weights: it promises nothing about those.
LOGITS = "logits differ"
LOSSES = (LOGITS, "only ", "the drafter is broken")
# Logits may be off by this many times what float32 itself makes of the original.
MOST_ROUNDINGS = 4


@pytest.fixture(autouse=True)
def _quiet_and_small():
    """One thread: the models are too small for more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    torch.set_num_threads(num_threads)


def export_and_check(case: Case, folder: Path, recipe: str) -> CheckReport:
    config = with_recipe(save_case(case, folder), recipe)
    export(config)
    bundle = Bundle.open(config.output)
    bundle.verify_checksums()
    return check_bundle(bundle, "onnx", SessionOptions(num_threads=1))


def own_rounding(folder: Path) -> float:
    """How far the original is in float32 from itself in float64, relative to its largest logit.

    On the texts that the bundle in the folder has recorded; by transformers' own modules.
    """
    architecture = json.loads((folder / "target" / "config.json").read_text())["architectures"][0]
    model_class = getattr(transformers, architecture)
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    single, double = (
        model_class.from_pretrained(folder / "target", dtype=dtype, **options).eval()
        for dtype in (torch.float32, torch.float64)
    )
    reference = Bundle.open(folder / "bundle-float32").reference()
    error = 0.0
    for prompt_ids, greedy_ids in zip(reference.prompt_ids, reference.greedy_ids, strict=True):
        text = torch.tensor([[*prompt_ids.tolist(), *greedy_ids.tolist()]])
        with torch.inference_mode():
            near, exact = (
                model(input_ids=text, use_cache=False, output_hidden_states=True).logits.double()
                for model in (single, double)
            )
        error = max(error, float((near - exact).abs().max()))
    return error / reference.logit_scale


def slow_but(quick: int, count: int) -> list[object]:
    """The seeds of which every run takes one."""
    return [
        seed if seed == quick else pytest.param(seed, marks=pytest.mark.slow)
        for seed in range(count)
    ]


@pytest.mark.parametrize("seed", slow_but(3, NUM_VALID))
def test_a_valid_pair(seed, tmp_path):
    case = draw_case(seed)
    report = export_and_check(case, tmp_path, "float32")
    failures = [line for line in report.failures if not line.startswith(LOGITS)]
    assert not failures, (failures, case)
    if not report.passed:  # some random models multiply rounding errors, the original's own too
        assert report.logit_error <= MOST_ROUNDINGS * own_rounding(tmp_path), case
    assert report.agreement > 0.99
    assert report.draft_length == (3 if case.has_drafter else 0)


@pytest.mark.slow
def test_a_pair_from_the_hub(tmp_path, monkeypatch):
    """Downloaded, exported, checked; the manifest says which commits came."""
    config = save_case(draw_case(3), tmp_path)
    with fake_hub() as server:
        server.add("maker/target", config.source.model)
        server.add("maker/drafter", config.source.drafter)
        hub = Hub(endpoint=server.endpoint, cache=tmp_path / "cache")
        monkeypatch.setattr("exporter.pipeline.fetch", partial(fetch, hub=hub))
        pair = {"model": HubModel("maker/target"), "drafter": HubModel("maker/drafter")}
        manifest = export(replace(config, source=replace(config.source, **pair)))
    assert manifest.sources == {
        "target": f"maker/target@{COMMIT}",
        "drafter": f"maker/drafter@{COMMIT}",
    }
    bundle = Bundle.open(config.output)
    assert bundle.manifest == manifest
    assert check_bundle(bundle, "onnx", SessionOptions(num_threads=1)).passed


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8", "int4-groups"])
@pytest.mark.parametrize("seed", range(0, NUM_VALID, 20))
def test_a_valid_pair_quantized(seed, recipe, tmp_path):
    """Random weights are not made for few bits; what must hold is that drafting changes nothing."""
    case = draw_case(seed)
    report = export_and_check(case, tmp_path, recipe)
    assert not [line for line in report.failures if not line.startswith(LOSSES)], (report, case)
