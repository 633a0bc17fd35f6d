import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.decoding.accept import accept
from runtime_py.decoding.sampling import GREEDY, SamplingParams, choose

samplings = st.sampled_from(
    [GREEDY, SamplingParams(temperature=1.0, seed=5), SamplingParams(temperature=0.7, top_k=3)]
)


@given(
    sampling=samplings,
    seed=st.integers(0, 1000),
    num_drafts=st.integers(0, 7),
    position=st.integers(0, 5000),
    data=st.data(),
)
def test_accepts_exactly_the_prefix_that_the_target_would_choose(
    sampling, seed, num_drafts, position, data
):
    logits = np.random.default_rng(seed).normal(0, 3, (num_drafts + 1, 9)).astype(np.float32)
    chosen = [choose(row, sampling, position + i) for i, row in enumerate(logits)]
    drafts = [
        token if data.draw(st.booleans()) else data.draw(st.integers(0, 8))
        for token in chosen[:num_drafts]
    ]
    num_accepted, bonus = accept(drafts, logits, sampling, position)
    assert 0 <= num_accepted <= num_drafts
    assert drafts[:num_accepted] == chosen[:num_accepted]
    assert bonus == chosen[num_accepted]
    if num_accepted < num_drafts:
        assert drafts[num_accepted] != bonus


def test_needs_one_row_more_than_drafts():
    with pytest.raises(ValueError, match="2 drafts need 3 rows"):
        accept([1, 2], np.zeros((2, 5), np.float32), GREEDY, 0)
