"""Sampling on the real artefact: speculation keeps the tokens, and the tokens follow the
original's distribution.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from runtime_py.decoding.sampling import SamplingParams, choose, surviving_tokens

NUM_SEEDS = 40
NUM_DRAWS = 5_000


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize(
    "filters", [{"top_k": 0, "top_p": 1.0}, {"top_k": 64, "top_p": 0.95}], ids=["all", "filtered"]
)
def test_speculative_sampling_equals_plain_sampling(float32, temperature, filters):
    prompts = float32.reference.prompt_ids
    for seed in range(NUM_SEEDS):
        sampling = SamplingParams(temperature=temperature, seed=seed, **filters)
        prompt_ids = prompts[seed % len(prompts)][:12]
        draft_length = (1, 3, 7)[seed % 3]
        plain = float32.generate(prompt_ids, 0, sampling, num_tokens=12)
        assert float32.generate(prompt_ids, draft_length, sampling, num_tokens=12) == plain, seed


def test_speculative_sampling_equals_plain_sampling_on_every_recipe(loaded):
    """Every prompt, 64 tokens each."""
    for seed, prompt_ids in enumerate(loaded.reference.prompt_ids):
        sampling = SamplingParams(temperature=1.0, top_k=64, top_p=0.95, seed=seed)
        plain = loaded.generate(prompt_ids, 0, sampling)
        assert loaded.generate(prompt_ids, (1, 3, 7)[seed % 3], sampling) == plain, seed


def exact_probabilities(original, token_ids, sampling):
    """The eager target's next-token probabilities over the tokens that survive the filters."""
    with torch.inference_mode():
        logits = original.read(token_ids).logits[-1].numpy()
    kept, scaled = surviving_tokens(logits, sampling)
    weights = np.exp(scaled - scaled.max())
    return dict(zip(kept.tolist(), weights / weights.sum(), strict=True))


def test_the_first_two_tokens_follow_the_original_distribution(float32, original):
    sampling = SamplingParams(temperature=1.0, top_k=8, top_p=1.0, seed=0)
    prompt_ids = float32.reference.prompt_ids[1].tolist()
    position = len(prompt_ids)
    expected = {
        (first, second): p_first * p_second
        for first, p_first in exact_probabilities(original, prompt_ids, sampling).items()
        for second, p_second in exact_probabilities(
            original, [*prompt_ids, first], sampling
        ).items()
    }
    # The artefact's logits, recorded once for each first token that can be drawn.
    float32.backend.prefill(prompt_ids[:-1], 0)
    first_logits = np.array(float32.backend.verify(prompt_ids[-1:], position - 1)[0][0])
    second_logits = {
        first: np.array(float32.backend.verify([first], position)[0][0]) for first, _ in expected
    }
    counts = dict.fromkeys(expected, 0)
    for seed in range(NUM_DRAWS):
        sampling = SamplingParams(temperature=1.0, top_k=8, top_p=1.0, seed=seed)
        first = choose(first_logits, sampling, position)
        counts[first, choose(second_logits[first], sampling, position + 1)] += 1
    frequent = [pair for pair in expected if expected[pair] * NUM_DRAWS >= 5]
    rare = [pair for pair in expected if expected[pair] * NUM_DRAWS < 5]
    observed = [counts[pair] for pair in frequent] + [sum(counts[pair] for pair in rare)]
    wanted = [expected[pair] for pair in frequent] + [sum(expected[pair] for pair in rare)]
    kept = np.array(wanted) > 0
    result = stats.chisquare(
        np.array(observed)[kept], NUM_DRAWS * np.array(wanted)[kept] / sum(wanted)
    )
    assert result.pvalue > 0.001
