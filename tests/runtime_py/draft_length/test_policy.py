"""The policy against fixed draft lengths, by simulation, and the laws it keeps whatever happens."""

import itertools
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.decoding.policy import FixedDraftLength, Outcome, Round
from runtime_py.draft_length import acceptance, costs, policy
from runtime_py.draft_length.acceptance import Acceptance
from runtime_py.draft_length.costs import Costs, Known
from runtime_py.draft_length.policy import AutoDraftLength
from tests.golden_traces import right_drafts
from tests.runtime_py.draft_length.simulation import (
    ACCEPTED,
    CHANGES,
    LONGEST,
    NUM_TOKENS,
    QUIET,
    TABLES,
    CostTable,
    Noise,
    after_changes,
    auto,
    busy,
    fixed_costs,
    regrets,
    simulate,
    steady,
    table,
    trace,
    worst_of_plain,
)

NUM_SEEDS = 4
LITERT, TINY = TABLES["LiteRT int8"], TABLES["tiny model"]


def mean(values) -> float:
    return float(np.mean(list(values)))


def test_mean_regret_on_steady_text_is_at_most_3_percent():
    assert mean(steady(t, kind, NUM_SEEDS) for t in TABLES.values() for kind in ACCEPTED) <= 0.03


def test_mean_regret_is_at_most_7_percent_50_tokens_after_a_change():
    pairs = itertools.product(TABLES.values(), CHANGES)
    assert mean(after_changes(t, kinds, NUM_SEEDS) for t, kinds in pairs) <= 0.07


def test_mean_regret_on_a_busy_machine_is_at_most_5_percent():
    assert mean(busy(t, k, NUM_SEEDS) for t in TABLES.values() for k in ("E2B", "code")) <= 0.05


@pytest.mark.parametrize("name", TABLES)
def test_a_drafter_that_is_always_wrong_costs_at_most_3_percent(name):
    """With every seed, though it expects 75 %."""
    assert worst_of_plain(TABLES[name], 2 * NUM_SEEDS) >= 0.97


class OnMachine:
    """A policy that sees calls at the speed of a machine that is not as fast as at load."""

    def __init__(self, policy: AutoDraftLength, slowness: Iterator[float]) -> None:
        self._policy, self._slowness = policy, slowness

    def next_round(self) -> Round:
        return self._policy.next_round()

    def observe(self, outcome: Outcome) -> None:
        slow = next(self._slowness)
        slowed = {"draft_s": slow * outcome.draft_s, "verify_s": slow * outcome.verify_s}
        self._policy.observe(outcome._replace(**slowed))


SLOWNESS = {
    "twice as slow": lambda: itertools.repeat(2.0),
    "twice as fast": lambda: itertools.repeat(0.5),
    "changing": lambda: itertools.cycle([1.0] * 50 + [1.5] * 50),
}


def on_machine(slowness: str) -> float:
    """Regret of a machine on which all calls are as slow."""

    def make(t: CostTable, rng: np.random.Generator, noise: Noise) -> OnMachine:
        return OnMachine(auto(t, rng, noise), SLOWNESS[slowness]())

    kinds = itertools.product(TABLES.values(), ("always wrong", "E2B"))
    return mean(mean(regrets(t, [(NUM_TOKENS, k)], NUM_SEEDS // 2, make=make)) for t, k in kinds)


@pytest.mark.parametrize("slowness", SLOWNESS)
def test_a_machine_as_slow_in_all_calls_does_not_mislead_it(slowness):
    assert on_machine(slowness) <= 0.03


def test_a_decode_measured_too_expensive_at_load_is_found_out():
    """Plain decoding is best and seems 1.6 times as expensive: from the 100th token on."""

    def make(t: CostTable, rng: np.random.Generator, _: Noise) -> AutoDraftLength:
        known = t.known(rng)
        round_s = [1.6 * known.round_s[0], *known.round_s[1:]]
        return AutoDraftLength(known.model_copy(update={"round_s": round_s}))

    text = [(NUM_TOKENS, "prose")]
    assert mean(regrets(TINY, text, NUM_SEEDS, make=make, tokens=slice(100, None))) < 0.15


def uses(known: Known, num_uses: int, t: CostTable, shares, noise: Noise) -> Iterator[float]:
    """Regret of each use, which begins with what the one before remembered."""
    for seed in range(num_uses):
        rng, auto_policy = np.random.default_rng(seed), AutoDraftLength(known)
        right = trace(rng, (400, shares))
        cost = simulate(right, t, auto_policy, rng, noise)
        yield cost.sum() / min(fixed.sum() for fixed in fixed_costs(right, t).values()) - 1
        known = auto_policy.to_remember()


def test_a_wrong_drafter_costs_no_more_in_later_uses():
    """What a use did not try is remembered as it was measured: nothing grows tempting by itself."""
    known = LITERT.known(np.random.default_rng(0))
    assert max([*uses(known, 40, LITERT, (0.0,), QUIET)][1:]) < 0.03


def test_a_wrong_drafter_is_remembered():
    known = LITERT.known(np.random.default_rng(0))
    first, *_, last = uses(known, 3, LITERT, (0.0,), QUIET)
    assert last < first


def test_the_tiny_models_own_texts_take_hardly_longer_than_with_the_best_fixed_length():
    """Three drafts take as long as plain decoding, or less; which are right, its drafter said."""
    t, took = table(0.38, (1, 1.4, 1.65, 2.8), tuple(range(1, 9))), 0.0
    texts = [np.arange(LONGEST) < np.array(text)[:, None] for text in right_drafts.read()]
    best = min(sum(fixed_costs(text, t)[n].sum() for text in texts) for n in range(8))
    rng = np.random.default_rng(0)
    known = t.known(rng, 0.05)
    for text in texts:
        auto_policy = AutoDraftLength(known)
        took += simulate(text, t, auto_policy, rng).sum()
        known = auto_policy.to_remember()
    assert best / took > 0.95


def outcome(t: CostTable, planned: Round, hits: bool) -> Outcome:
    """All drafts hit or none does, and nothing disturbs."""
    num_drafts, num_verified = planned.num_drafts, planned.num_drafts + 1 if planned.verified else 1
    accepted = num_drafts if hits else 0
    return Outcome(num_drafts, accepted, num_drafts * t.draft, t.call(num_verified), num_verified)


def rounds_of(auto_policy: AutoDraftLength, num_rounds: int, t: CostTable, hits: bool) -> list:
    """What is decided."""
    planned = []
    for _ in range(num_rounds):
        planned.append(auto_policy.next_round())
        auto_policy.observe(outcome(t, planned[-1], hits))
    return planned


def begun(t: CostTable, prior: float = 0.75) -> AutoDraftLength:
    return AutoDraftLength(t.known(np.random.default_rng(0), prior=prior))


def test_a_text_whose_drafts_hit_again_is_noticed():
    auto_policy = begun(TINY)
    rounds_of(auto_policy, 400, TINY, hits=False)
    planned = rounds_of(auto_policy, 400, TINY, hits=True)
    assert [one.verified and one.num_drafts > 0 for one in planned].index(True) < 100


def test_a_text_whose_drafts_miss_now_is_noticed():
    auto_policy = begun(LITERT)
    rounds_of(auto_policy, 100, LITERT, hits=True)
    planned = rounds_of(auto_policy, 60, LITERT, hits=False)
    assert sum(one.num_drafts for one in planned) < 100


def test_compared_drafts_take_their_share_of_the_time():
    planned = rounds_of(begun(TINY), 4000, TINY, hits=False)[500:]
    num_compared = sum(one.num_drafts for one in planned)
    assert 0 < num_compared * TINY.draft <= 0.011 * len(planned)


def test_one_pause_of_the_machine_changes_nothing():
    auto_policy = begun(LITERT, prior=0.9)
    auto_policy.costs.observe(0, 1.0)
    auto_policy.costs.observe(0, 1.0)
    rounds_of(auto_policy, 2, LITERT, hits=True)  # the next round's time is its own
    planned = auto_policy.next_round()
    seen = outcome(LITERT, planned, hits=True)
    auto_policy.observe(seen._replace(verify_s=100.0))
    assert auto_policy.next_round() == planned == Round(7)


def test_where_no_drafter_could_pay_nothing_is_drafted():
    slow = TABLES["slow device"]
    assert set(rounds_of(begun(slow), 200, slow, hits=True)) == {Round(0)}


def test_a_gain_within_the_error_of_the_estimates_is_not_taken():
    for gain, length in ((1.005, 0), (1.05, 1)):
        auto_policy = AutoDraftLength(Known(round_s=[1.0, 2 / gain], draft_s=0.5, acceptance=1.0))
        auto_policy.observe(Outcome(0, 0, 0.0, 1.0, 1))
        planned = auto_policy.next_round()
        assert planned.num_drafts * planned.verified == length


def test_plain_rounds_are_learnt_from_together():
    with patch.object(Costs, "observe") as learn:
        rounds_of(begun(TABLES["slow device"]), 1000, TABLES["slow device"], hits=True)
    assert learn.call_count < 100


def observe(found: Costs, num_drafts: int, seconds: list[float]) -> None:
    for each in seconds:
        found.observe(num_drafts, each)


def test_what_plain_rounds_show_counts_for_all_rounds():
    found = Costs(Known(round_s=[1.0, 1.5, 2.0], draft_s=0.3, acceptance=0.5))
    observe(found, 0, [2.0] * 30)
    assert [found[n] for n in range(3)] == pytest.approx([2.0, 3.0, 4.0], rel=0.01)


def test_a_round_after_others_shows_its_own_cost():
    found = Costs(Known(round_s=[1.0, 1.5, 2.0], draft_s=0.3, acceptance=0.5))
    observe(found, 1, [1.5] * 5)
    observe(found, 2, [2.4])
    assert [found[0], found[1]] == [1.0, 1.5]
    assert 2.0 < found[2] < 2.15  # once is a moment
    for cost, num_rows in ((2.4, 300), (2.0, 60)):  # then it is another one
        for _ in range(num_rows):
            observe(found, 1, [1.5] * 5)
            observe(found, 2, [cost] * 3)
    assert found[2] / found[1] == pytest.approx(2.0 / 1.5, rel=0.02)


def test_one_miss_is_not_the_end():
    found = Acceptance(LONGEST, 0.8)
    found.observe(LONGEST, 0, 1)
    assert 0.3 < found.shares[0] < 0.8
    assert found.shares[0] < found.shares[1] < 0.8  # not tried: as all together


@pytest.mark.parametrize(
    ("module", "name", "off", "law"),
    [
        (acceptance, "MEMORY", 1e9, test_a_text_whose_drafts_miss_now_is_noticed),
        (acceptance, "POOLED", 1e-9, test_one_miss_is_not_the_end),
        (costs, "LEVEL_RATE", 0.0, test_what_plain_rounds_show_counts_for_all_rounds),
        (costs, "MOST_CHANGE", 1e9, test_one_pause_of_the_machine_changes_nothing),
        (costs, "NUM_MEASURED", 0.0, test_a_round_after_others_shows_its_own_cost),
        (costs, "MOST_SAMPLES", 1e9, test_a_round_after_others_shows_its_own_cost),
        (costs, "NUM_OWN", 0, test_a_decode_measured_too_expensive_at_load_is_found_out),
        (policy, "MARGIN", 1.0, test_a_gain_within_the_error_of_the_estimates_is_not_taken),
        (policy, "PROBES", 0.1, test_compared_drafts_take_their_share_of_the_time),
        (policy, "CREDIT", 0.0, test_a_text_whose_drafts_hit_again_is_noticed),
        (policy, "REFRESH", 1e9, test_a_decode_measured_too_expensive_at_load_is_found_out),
        (policy, "BATCH", 1, test_plain_rounds_are_learnt_from_together),
    ],
)
def test_without_a_constant_its_law_breaks(monkeypatch, module, name, off, law):
    monkeypatch.setattr(module, name, off)
    with pytest.raises(AssertionError):
        law()


@pytest.mark.parametrize("length", [0, 3, LONGEST])
def test_the_fixed_lengths_cost_what_the_simulated_loop_costs_with_them(length):
    rng = np.random.default_rng(length)
    right = trace(rng, (100, ACCEPTED["E2B"]))
    looped = simulate(right, LITERT, FixedDraftLength(length), rng)
    np.testing.assert_array_equal(looped, fixed_costs(right, LITERT)[length])


seconds = st.floats(0, 1e6)
some_known = st.builds(
    lambda round_s, draft_s, share: Known(round_s=round_s, draft_s=draft_s, acceptance=share),
    st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=LONGEST + 1),
    st.floats(1e-6, 1e3),
    st.floats(0, 1),
)
some_outcomes = st.lists(
    st.tuples(st.integers(0, LONGEST), st.integers(0, 9), seconds, seconds), max_size=60
)


@settings(deadline=None)
@given(some_known, some_outcomes)
def test_whatever_it_sees_it_stays_in_range_and_decides_the_same_again(known, outcomes):
    first, second = AutoDraftLength(known), AutoDraftLength(known)
    for drafted, accepted, draft_s, verify_s in outcomes:
        planned = first.next_round()
        assert planned == second.next_round()
        assert (
            planned.num_drafts < len(known.round_s)
            if planned.verified
            else planned == Round(1, False)
        )
        drafted = min(drafted, planned.num_drafts)  # fewer at the end of the context
        num_verified = drafted + 1 if planned.verified else 1
        accepted = min(accepted, drafted)
        for one in (first, second):
            one.observe(Outcome(drafted, accepted, draft_s, verify_s, num_verified))
        assert all(0 <= share <= 1 for share in first.acceptance.shares)
        assert all(0 < first.costs[n] < float("inf") for n in range(len(known.round_s)))


@settings(deadline=None)
@given(st.floats(0, 1), st.lists(st.integers(0, LONGEST), max_size=20), st.integers(1, LONGEST))
def test_a_hit_raises_the_estimate_and_a_miss_lowers_it(prior, history, drafted):
    def after(num_accepted: int) -> float:
        found = Acceptance(LONGEST, prior)
        for accepted in history:
            found.observe(LONGEST, accepted, 1 + accepted)
        found.observe(drafted, num_accepted, 1)
        return found.shares[0]

    assert after(drafted) > after(0)
