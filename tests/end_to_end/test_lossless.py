"""The bundle says what the original says, and speculation changes nothing but the speed."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from runtime_py.backends import SessionOptions
from runtime_py.bundle.bundle import Bundle
from runtime_py.check.replay import MAX_TIE, CheckReport, run_check
from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session
from runtime_py.draft_length.measure import auto_draft_length
from tests.end_to_end.conftest import NUM_TOKENS, RECIPES, RUNTIMES, LoadedBundle
from tests.runtime_py.scripted_backend import Adversary

DRAFT_LENGTHS = (0, 1, 3, 7)


@pytest.fixture(scope="session")
def original_texts(export_tiny, original):
    """transformers' own greedy tokens, generated anew."""
    prompts = Bundle.open(export_tiny("float32")).reference().prompt_ids
    return [original.greedy(ids.tolist(), NUM_TOKENS) for ids in prompts]


@pytest.mark.parametrize("draft_length", DRAFT_LENGTHS)
def test_float32_greedy_equals_transformers_greedy(float32, original_texts, draft_length):
    for prompt_ids, text in zip(float32.reference.prompt_ids, original_texts, strict=True):
        assert float32.generate(prompt_ids, draft_length) == text


def test_transformers_assisted_generation_says_the_same(original_texts, export_tiny, original):
    prompts = Bundle.open(export_tiny("float32")).reference().prompt_ids
    for prompt_ids, text in zip(prompts, original_texts, strict=True):
        assert original.assisted(prompt_ids.tolist(), NUM_TOKENS) == text


def test_speculative_equals_plain_on_every_recipe(loaded):
    for prompt_ids in loaded.reference.prompt_ids:
        plain = loaded.generate(prompt_ids, 0)
        for draft_length in DRAFT_LENGTHS[1:]:
            assert loaded.generate(prompt_ids, draft_length) == plain


def test_whatever_auto_decides_the_text_is_the_same(loaded):
    """Any number of drafts in any round, verified or only compared; greedy and sampled."""
    for seed, prompt_ids in enumerate(loaded.reference.prompt_ids):
        sampling = SamplingParams(temperature=float(seed % 2), top_k=64, top_p=0.95, seed=seed)
        plain = loaded.generate(prompt_ids, 0, sampling)
        assert loaded.generate(prompt_ids, Adversary.random(seed), sampling) == plain, seed


def test_auto_itself_keeps_the_text(loaded, runtime):
    policy = auto_draft_length(loaded.bundle, runtime, loaded.backend, SessionOptions(1))
    for prompt_ids in loaded.reference.prompt_ids:
        assert loaded.generate(prompt_ids, policy) == loaded.generate(prompt_ids, 0)


@pytest.fixture(scope="module")
def report(export_tiny) -> Callable[[str, str], CheckReport]:
    """What the check says of a recipe on a runtime; asked once of each."""

    @cache
    def check(recipe: str, runtime: str) -> CheckReport:
        with closing(LoadedBundle(export_tiny(recipe), runtime)) as loaded:
            session = Session(loaded.backend, loaded.bundle.manifest.model.context_length)
            return run_check(session, loaded.backend, loaded.reference, loaded.tolerances)

    return check


def test_the_check_passes_on_every_recipe(report, recipe, runtime):
    found = report(recipe, runtime)
    assert found.passed, found.failures
    assert found.speculative.equal
    assert found.speculative.num_tokens > 0
    if recipe == "float32":
        assert found.original.equal
        assert found.logit_error < MAX_TIE


def test_the_check_of_float32_is_the_same_table_on_every_runtime(report):
    reports = [report("float32", runtime) for runtime in RUNTIMES]
    assert all(found.logit_error < 1e-5 for found in reports)
    first, *others = (replace(found, logit_error=0.0) for found in reports)
    assert all(other == first for other in others)


def test_quantized_recipes_cost_agreement_but_not_the_drafter(report, runtime):
    """int8 loses less than int4, and neither loses the drafter."""
    agreement = {recipe: report(recipe, runtime).agreement for recipe in RECIPES}
    assert all(report(recipe, runtime).acceptance[0] > 0.5 for recipe in RECIPES)
    assert 1 == agreement["float32"] >= agreement["int8"] > agreement["int4"]


def test_every_width_gives_the_same_logits(loaded):
    """Verify equals step-by-step decode on the artefact itself, also in quantized arithmetic."""
    prompt_ids = loaded.reference.prompt_ids[0].tolist()
    text = [*prompt_ids, *loaded.reference.greedy_ids[0].tolist()]
    start = len(prompt_ids)
    loaded.backend.prefill(text[:start], 0)
    decoded = [
        np.array(loaded.backend.verify([token_id], start + i)[0][0])
        for i, token_id in enumerate(text[start : start + 24])
    ]
    for width in loaded.backend.verify_widths[1:]:
        loaded.backend.prefill(text[:start], 0)
        for first in range(0, 24, width):
            chunk = text[start + first : start + min(first + width, 24)]
            logits, _ = loaded.backend.verify(chunk, start + first)
            for i, row in enumerate(logits):
                error = np.abs(row - decoded[first + i]).max() / loaded.reference.logit_scale
                assert error < 1e-5, (width, first + i)


def test_what_the_target_writes_changes_what_the_drafter_returns(loaded):
    """A drafter whose KV was folded into constants would say the same whatever was committed."""
    backend, prompt_ids = loaded.backend, loaded.reference.prompt_ids[0].tolist()
    hidden = np.linspace(-1, 1, backend.hidden_size, dtype=np.float32)

    def drafted() -> np.ndarray:
        return backend.draft(prompt_ids[0], hidden, 12)[0].copy()

    backend.prefill(prompt_ids[:12], 0)
    before = drafted()
    np.testing.assert_array_equal(drafted(), before)
    backend.verify(prompt_ids[1:4][::-1], 9)
    assert not np.array_equal(drafted(), before)
