"""The bundle says what the original says, and speculation changes nothing but the speed."""

import numpy as np
import pytest

from runtime_py.check import MAX_TIE, run_check
from tests.end_to_end.conftest import NUM_TOKENS

DRAFT_LENGTHS = (0, 1, 3, 7)


def test_the_reference_covers_twenty_held_out_prompts(float32):
    assert float32.reference.greedy_ids.shape == (20, NUM_TOKENS)


@pytest.fixture(scope="module")
def original_texts(float32, original):
    """transformers' own greedy tokens, generated anew."""
    return [original.greedy(ids.tolist(), NUM_TOKENS) for ids in float32.reference.prompt_ids]


@pytest.mark.parametrize("draft_length", DRAFT_LENGTHS)
def test_float32_greedy_equals_transformers_greedy(float32, original_texts, draft_length):
    for prompt_ids, text in zip(float32.reference.prompt_ids, original_texts, strict=True):
        assert float32.generate(prompt_ids, draft_length) == text


def test_transformers_assisted_generation_says_the_same(float32, original):
    for prompt_ids in float32.reference.prompt_ids:
        ids = prompt_ids.tolist()
        assert original.assisted(ids, NUM_TOKENS) == float32.generate(ids, 3)


def test_speculative_equals_plain_on_every_recipe(loaded):
    for prompt_ids in loaded.reference.prompt_ids:
        plain = loaded.generate(prompt_ids, 0)
        for draft_length in DRAFT_LENGTHS[1:]:
            assert loaded.generate(prompt_ids, draft_length) == plain


def test_the_check_passes_on_every_recipe(loaded, recipe):
    entry = loaded.bundle.entry("litert")
    report = run_check(
        loaded.bundle.session(loaded.backend), loaded.backend, loaded.reference, entry.tolerances
    )
    assert report.passed, report.failures
    assert report.speculative.num_prompts_equal == 20
    if recipe == "float32":
        assert report.original.num_prompts_equal == 20
        assert report.logit_error < MAX_TIE


def test_quantized_recipes_cost_agreement_but_not_the_drafter(export_tiny):
    """int8 loses less than int4, and neither loses the drafter."""
    from contextlib import closing

    from tests.end_to_end.conftest import LoadedBundle

    agreement = {}
    for recipe in ("float32", "int8", "int4"):
        with closing(LoadedBundle(export_tiny(recipe))) as bundle:
            entry = bundle.bundle.entry("litert")
            report = run_check(bundle.session, bundle.backend, bundle.reference, entry.tolerances)
        agreement[recipe] = report.agreement
        assert report.acceptance[0] > 0.5
    assert agreement["float32"] == 1
    assert 1 > agreement["int8"] > agreement["int4"] > 0.5


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
            logits, _ = loaded.backend.verify(
                text[start + first : start + first + width], start + first
            )
            for i, row in enumerate(logits):
                error = np.abs(row - decoded[first + i]).max() / loaded.reference.logit_scale
                assert error < 1e-5, (width, first + i)
