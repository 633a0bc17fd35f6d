"""The contest of draft lengths: what is held to what, and that all say the same."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from runtime_py.decoding.policy import FixedDraftLength
from tests.benchmarks.draft_contest import AUTO, PLAIN, Contest, Repeats, _judge, _Race, _race, hold
from tests.benchmarks.played import PlayedDrafter, PlayedTarget, Script
from tests.runtime_py.scripted_backend import ScriptedBackend

POLICIES = {
    PLAIN: partial(FixedDraftLength, 0),
    "K = 1": partial(FixedDraftLength, 1),
    AUTO: partial(FixedDraftLength, 3),
}
PADDED = POLICIES | {"K = 2": partial(FixedDraftLength, 2)}  # writes a row behind its tokens, too


def _contest(backend, always_wrong: bool = False) -> Contest:
    return Contest(
        name="x",
        backend=backend,
        prompts=[[3, 1, 4], [1, 5]],
        num_tokens=20,
        policies=POLICIES,
        turn=5,
        always_wrong=always_wrong,
    )


@pytest.mark.parametrize(
    ("always_wrong", "speeds", "num_misses"),
    [
        (True, {PLAIN: [100.0], AUTO: [97.1]}, 0),
        (True, {PLAIN: [100.0], AUTO: [96.0]}, 1),
        (False, {PLAIN: [100.0], "K = 1": [150.0], AUTO: [143.0]}, 0),
        (False, {PLAIN: [100.0], "K = 1": [150.0], AUTO: [142.0]}, 1),
        (False, {PLAIN: [100.0], AUTO: [94.0]}, 1),  # no drafts is a length too
    ],
)
def test_a_wrong_drafter_holds_auto_to_plain_and_any_other_to_the_best(
    always_wrong, speeds, num_misses
):
    best = max(set(speeds) - {AUTO}, key=lambda name: speeds[name])
    found = _judge(_contest(ScriptedBackend(), always_wrong), _Race(speeds), best)
    assert len(found.misses) == num_misses


@pytest.mark.parametrize(("always_wrong", "num_in_heats"), [(False, 3), (True, 0)])
def test_everyone_is_timed_in_the_heats_the_finalists_in_the_finals(always_wrong, num_in_heats):
    found = hold(_contest(ScriptedBackend(), always_wrong), Repeats(heats=2, finals=4))
    heats = {key: len(values) for key, values in found.raw.items() if "heats" in key}
    finals = {key: len(values) for key, values in found.raw.items() if "heats" not in key}
    assert list(heats.values()) == num_in_heats * [2]
    assert {"x, plain: tokens/s", "x, auto: tokens/s"} <= set(finals)
    assert set(finals.values()) == {4}
    rounds = found.found["x: rounds of auto, by drafts"]
    assert set(rounds) == {"3"}  # only auto is watched
    assert not [miss for miss in found.misses if "another text" in miss]


def test_another_text_is_a_miss():
    class Forgetful(ScriptedBackend):
        """Its wide graph gives another answer than decode, at the end: all write the same rows."""

        def verify(self, token_ids, position):
            logits, hidden = super().verify(token_ids, position)
            wrong = len(token_ids) == 4 and position > 15
            return (logits[:, ::-1] if wrong else logits), hidden

    found = hold(_contest(Forgetful()), Repeats(heats=1, finals=1))
    assert "x: auto: another text than plain decoding's" in found.misses


def test_the_script_of_a_prompt_is_played_before_its_generations():
    drafter, played = PlayedDrafter(ScriptedBackend()), []

    def play(index: int) -> None:
        played.append(index)
        drafter.script = Script([0] * 128, None)

    contest = _contest(drafter)
    hold(replace(contest, play=play), Repeats(heats=1, finals=1))
    assert played == 4 * [0, 1]


def test_candidates_take_turns_within_a_prompt():
    """With drafts that are wrong, a round makes one token: nobody is ahead by more than a turn."""
    turn, ahead, num_rounds = 5, [0], Counter()

    class Counted(FixedDraftLength):
        def next_round(self):
            num_rounds[self] += 1
            if len(num_rounds) == len(POLICIES):
                ahead.append(max(num_rounds.values()) - min(num_rounds.values()))
            return super().next_round()

    target = PlayedTarget(ScriptedBackend())
    drafter, text = PlayedDrafter(target), [*range(60)]
    target.text, drafter.script = text, Script(text, None)
    policies = {name: partial(Counted, made.args[0]) for name, made in POLICIES.items()}
    contest = replace(_contest(drafter), prompts=[text[:8]], policies=policies, turn=turn)
    race = _race(contest, list(policies), 1)
    assert not race.others
    assert 0 < max(ahead) <= turn + 1  # whose first turn is one longer
    assert set(num_rounds.values()) == {contest.num_tokens}


@pytest.mark.parametrize("turn", [1, 3, 20])
def test_rows_that_others_wrote_to_are_written_anew(turn):
    contest = _contest(ScriptedBackend())
    contest = replace(contest, num_tokens=100, turn=turn, policies=PADDED)
    assert not _race(contest, list(PADDED), 1).others


def test_rows_that_are_not_written_anew_are_noticed():
    contest = _contest(ScriptedBackend())
    contest = replace(contest, num_tokens=100, turn=3, policies=PADDED, recall=False)
    with pytest.raises(AssertionError):  # by the backend: hidden states are of other rows
        _race(contest, list(PADDED), 1)
