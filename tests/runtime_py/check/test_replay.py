import dataclasses

import numpy as np
import pytest

from runtime_py.bench.measure import TimedBackend
from runtime_py.bundle.manifest import Tolerances
from runtime_py.check.replay import round_cost, run_check
from runtime_py.decoding.session import Session
from tests.runtime_py.bundles import VOCAB_SIZE, scripted_reference
from tests.runtime_py.scripted_backend import ScriptedBackend

EXACT = Tolerances(max_logit_error=1e-4, min_agreement=1.0, min_acceptance_ratio=0.9)
LOOSE = Tolerances(max_logit_error=0.5, min_agreement=0.0, min_acceptance_ratio=0.9)


@pytest.fixture(scope="module")
def reference():
    return scripted_reference(ScriptedBackend(vocab_size=VOCAB_SIZE, skill=0.8))


def check(backend, reference, tolerances=EXACT):
    return run_check(Session(backend, 128), backend, reference, tolerances)


def backend(**kwargs):
    return ScriptedBackend(vocab_size=VOCAB_SIZE, **{"skill": 0.8, **kwargs})


def test_a_faithful_bundle_passes(reference):
    report = check(backend(), reference)
    assert report.passed
    assert report.original.equal
    assert report.speculative.equal
    assert report.original.num_equal == report.original.num_tokens == reference.greedy_ids.size
    assert report.agreement == 1
    assert report.logit_error < 1e-6
    assert report.acceptance == report.original_acceptance
    assert 0 < report.acceptance[0] < 1


def test_a_mis_wired_drafter_fails_loudly(reference):
    report = check(backend(skill=0.0), reference)
    assert report.original.equal
    assert report.speculative.equal  # a bad drafter costs time, never text
    assert not report.passed
    assert "the drafter is broken or mis-wired: 0.0% of first drafts" in report.failures[0]


class Drifting(ScriptedBackend):
    """Logits that are off by a little everywhere."""

    def target_logits(self, tokens):
        return super().target_logits(tokens) + np.float32(0.01)


def test_logits_off_by_more_than_the_tolerance_fail(reference):
    report = check(Drifting(vocab_size=VOCAB_SIZE, skill=0.8), reference)
    assert report.original.equal
    assert not report.passed
    assert "logits differ from the original's" in report.failures[0]
    assert check(Drifting(vocab_size=VOCAB_SIZE, skill=0.8), reference, LOOSE).passed


class NotANumber(ScriptedBackend):
    def target_logits(self, tokens):
        return super().target_logits(tokens) * np.float32("nan")


def test_not_a_number_fails(reference):
    report = check(NotANumber(vocab_size=VOCAB_SIZE), reference, LOOSE)
    assert report.logit_error == float("inf")
    assert not report.passed


class WidthDependent(ScriptedBackend):
    """Calls of several tokens choose otherwise than calls of one."""

    def verify(self, token_ids, position):
        logits, hidden = super().verify(token_ids, position)
        return (np.roll(logits, 1, axis=-1) if len(token_ids) > 1 else logits), hidden


def test_speculative_output_that_is_not_plain_output_fails(reference):
    report = check(WidthDependent(vocab_size=VOCAB_SIZE, skill=0.8), reference, LOOSE)
    assert not report.speculative.equal
    difference = report.speculative.differences[0]
    assert (difference.prompt, difference.token) == (0, 1)
    assert difference.margin > 0
    assert any("speculative output differs from plain" in failure for failure in report.failures)


class SecondBest(ScriptedBackend):
    """Says the second best token after the first prompt."""

    def target_logits(self, tokens):
        logits = super().target_logits(tokens)
        if list(tokens) == [2, 5, 7, 0]:
            best, second = np.argsort(-logits)[:2]
            logits[[best, second]] = logits[[second, best]]
        return logits


@pytest.mark.parametrize(("margin", "ties"), [(7e-6, 1), (9e-6, 0)])
def test_a_tie_that_rounding_decides_is_no_disagreement(reference, margin, ties):
    """Where the original's two best logits lie this far apart, of its scale."""
    logits = reference.probe_logits.copy()
    logits[0, 0, 1] = logits[0, 0, 0] - margin * reference.logit_scale
    near = dataclasses.replace(reference, probe_logits=logits)
    tolerances = Tolerances(max_logit_error=1.0, min_agreement=1.0)
    report = check(SecondBest(vocab_size=VOCAB_SIZE), near, tolerances)
    assert report.num_ties == ties
    num_tokens = reference.greedy_ids.size
    assert report.agreement == (1 if ties else pytest.approx(1 - 1 / num_tokens))
    assert any("of tokens agree" in failure for failure in report.failures) == (not ties)


def test_another_model_fails(reference):
    class Other(ScriptedBackend):
        def target_logits(self, tokens):
            return super().target_logits([*tokens, 0])

    report = check(Other(vocab_size=VOCAB_SIZE), reference, LOOSE)
    assert not report.original.equal
    assert report.agreement < 0.2
    assert report.original.smallest_margin is not None


def test_a_bundle_without_drafter_is_checked_plainly(reference):
    plain = backend()
    plain.has_drafter = False
    report = check(plain, reference)
    assert report.passed
    assert report.draft_length == 0


def test_progress_counts_prompts(reference):
    seen = []
    faithful = backend()
    run_check(Session(faithful, 128), faithful, reference, EXACT, seen.append)
    assert seen == [1, 2]


def test_arrays_that_do_not_fit_each_other_are_refused(reference):
    with pytest.raises(ValueError, match="shapes do not fit"):
        dataclasses.replace(reference, prompts=("only one",))


def test_what_a_round_costs_is_measured_while_checking(reference):
    timed = TimedBackend(backend())
    report = run_check(Session(timed, 128), timed, reference, EXACT)
    drafts = report.draft_length
    timed.seconds = {stage: 0.0 for stage in timed.calls}
    timed.seconds["decode"] = 2.0 * timed.calls["decode"]
    timed.seconds["draft"] = 0.5 * timed.calls["draft"]
    timed.seconds[f"verify {drafts + 1}"] = 3.0 * timed.calls[f"verify {drafts + 1}"]
    assert round_cost(timed, drafts) == pytest.approx((0.5 * drafts + 3.0) / 2.0)
    assert round_cost(timed, 0) is None
    assert round_cost(TimedBackend(backend()), drafts) is None


def test_a_scale_that_is_no_number_fails_whatever_is_compared_with_it(reference):
    nan = dataclasses.replace(reference, logit_scale=float("nan"))
    assert not check(backend(), nan).passed
    assert not check(backend(), nan, LOOSE).passed
