import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from runtime_py.decoding.sampling import SamplingParams, choose, gumbel, philox, surviving_tokens
from runtime_py.errors import RunError

logit_rows = st.lists(
    st.floats(-30, 30, width=32) | st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=60
).map(lambda values: np.array(values, np.float32))


def words(*values):
    return tuple(np.array([value], np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known answers for philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    assert tuple(int(word[0]) for word in philox(words(*counter), key)) == expected


def test_noise_follows_the_gumbel_distribution():
    noise = np.concatenate([gumbel(7, position, np.arange(5000)) for position in range(20)])
    assert stats.kstest(noise, "gumbel_r").pvalue > 0.001
    assert noise.min() > -3.62
    assert noise.max() < 36.75


@given(
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**40),
    ids=st.lists(st.integers(0, 2**18), min_size=1, max_size=20),
)
def test_noise_of_a_token_does_not_depend_on_which_others_survive(seed, position, ids):
    together = gumbel(seed, position, np.array(ids))
    alone = [gumbel(seed, position, np.array([token_id]))[0] for token_id in ids]
    np.testing.assert_array_equal(together, alone)


def test_noise_of_a_whole_vocabulary_is_that_of_its_parts():
    ids = np.random.default_rng(0).permutation(20_000)
    parts = [gumbel(3, 5, ids[start : start + 700]) for start in range(0, ids.size, 700)]
    np.testing.assert_array_equal(gumbel(3, 5, ids), np.concatenate(parts))


def test_noise_differs_between_seeds_positions_and_tokens():
    values = {
        float(gumbel(seed, position, np.array([token_id]))[0])
        for seed in (0, 1, 2**32, 2**63)
        for position in (0, 1, 2**32)
        for token_id in (0, 1, 2)
    }
    assert len(values) == 4 * 3 * 3


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-300, 1e-199])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 2}])
def test_a_temperature_next_to_nothing_is_greedy(temperature, filters):
    logits = np.array([-1e30, 5, 3e38, 3.1e38, -3e38], np.float32)
    assert choose(logits, SamplingParams(temperature=temperature, **filters), 7) == 3


@given(logits=logit_rows, top_k=st.integers(0, 70), top_p=st.floats(0.01, 1))
def test_survivors_are_the_most_probable_tokens(logits, top_k, top_p):
    sampling = SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p)
    token_ids, scaled = surviving_tokens(logits, sampling)
    assert token_ids.size >= 1
    assert np.all(np.diff(token_ids) > 0)
    np.testing.assert_allclose(scaled, logits[token_ids].astype(np.float64) / 0.8)
    if top_k:
        assert token_ids.size <= top_k
    dropped = np.delete(logits, token_ids)
    if dropped.size:
        assert logits[token_ids].min() >= dropped.max()


@given(logits=logit_rows, top_p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(logits, top_p):
    token_ids, _ = surviving_tokens(logits, SamplingParams(temperature=1.0, top_k=0, top_p=top_p))
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    kept = np.sort(probabilities[token_ids])
    assert kept.sum() >= top_p - 1e-9
    assert kept[1:].sum() < top_p + 1e-9


@given(
    seed=st.integers(0, 100),
    size=st.integers(257, 3000),
    num_values=st.sampled_from([1, 2, 5, 100, 10**6]),
    top_k=st.integers(1, 20),
)
def test_top_k_is_that_of_a_stable_sort(seed, size, num_values, top_k):
    """However many logits are equal, as behind a centroid head."""
    logits = np.random.default_rng(seed).integers(0, num_values, size).astype(np.float32)
    token_ids, _ = surviving_tokens(logits, SamplingParams(temperature=1.0, top_k=top_k, top_p=1.0))
    expected = np.sort(np.argsort(-logits, kind="stable")[:top_k])
    np.testing.assert_array_equal(token_ids, expected)


@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 0, "top_p": 1},
        {"top_k": 0, "top_p": 0.9},
        {"top_k": 0, "top_p": 0.9999},
        {"top_k": 6000, "top_p": 1},
    ],
)
def test_large_vocabularies_take_short_cuts_that_change_nothing(monkeypatch, filters, spread):
    logits = np.random.default_rng(1).normal(0, spread, 20_000).astype(np.float32).round(2)
    sampling = SamplingParams(temperature=0.9, seed=4, **filters)
    short = [choose(logits, sampling, position) for position in range(40)]
    kept = surviving_tokens(logits, sampling)[0]
    monkeypatch.setattr("runtime_py.decoding.sampling._NUM_RANKED", logits.size)
    np.testing.assert_array_equal(surviving_tokens(logits, sampling)[0], kept)
    assert [choose(logits, sampling, position) for position in range(40)] == short


@settings(max_examples=30)
@given(logits=logit_rows, position=st.integers(0, 1000))
def test_temperature_zero_and_top_k_one_are_greedy(logits, position):
    greedy = int(np.argmax(logits))
    assert choose(logits, SamplingParams(), position) == greedy
    assert choose(logits, SamplingParams(temperature=1.5, top_k=1, seed=3), position) == greedy


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.7, top_k=0, top_p=1.0),
        SamplingParams(temperature=1.5, top_k=5, top_p=1.0),
        SamplingParams(temperature=1.0, top_k=0, top_p=0.8),
        SamplingParams(temperature=1.0, top_k=6, top_p=0.9),
    ],
)
def test_draws_fit_the_softmax(sampling):
    logits = np.random.default_rng(0).normal(0, 2, 12).astype(np.float32)
    token_ids, scaled = surviving_tokens(logits, sampling)
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    num_draws = 20_000
    drawn = [choose(logits, sampling, position) for position in range(num_draws)]
    counts = np.bincount(drawn, minlength=logits.size)
    assert counts.sum() == counts[token_ids].sum()
    assert stats.chisquare(counts[token_ids], probabilities * num_draws).pvalue > 0.001


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"top_p": 1.5}, "top-p is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_values_out_of_range_are_refused(setting, said):
    with pytest.raises(RunError, match=said):
        SamplingParams(**setting)
