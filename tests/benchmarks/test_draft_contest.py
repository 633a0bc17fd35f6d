"""The contest of draft lengths: what is held to what, and that all say the same."""

from collections import Counter
from functools import partial

import pytest

from runtime_py.draft_length import FixedDraftLength
from tests.benchmarks.draft_contest import AUTO, PLAIN, Contest, _judge, hold
from tests.benchmarks.played import PlayedDrafter, Script
from tests.runtime_py.scripted_backend import ScriptedBackend

POLICIES = {
    PLAIN: partial(FixedDraftLength, 0),
    "K = 1": partial(FixedDraftLength, 1),
    AUTO: partial(FixedDraftLength, 3),
}


def _contest(backend, always_wrong: bool = False) -> Contest:
    return Contest(
        name="x",
        backend=backend,
        prompts=[[3, 1, 4], [1, 5]],
        num_tokens=20,
        policies=POLICIES,
        always_wrong=always_wrong,
    )


@pytest.mark.parametrize(
    ("always_wrong", "speeds", "num_misses"),
    [
        (True, {PLAIN: [100.0], "K = 1": [60.0], AUTO: [97.1]}, 0),
        (True, {PLAIN: [100.0], "K = 1": [60.0], AUTO: [96.0]}, 1),
        (False, {PLAIN: [100.0], "K = 1": [150.0], AUTO: [143.0]}, 0),
        (False, {PLAIN: [100.0], "K = 1": [150.0], AUTO: [142.0]}, 1),
        (False, {PLAIN: [100.0], "K = 1": [50.0], AUTO: [94.0]}, 1),  # no drafts is a length too
    ],
)
def test_a_wrong_drafter_holds_auto_to_plain_and_any_other_to_the_best(
    always_wrong, speeds, num_misses
):
    found = _judge(_contest(ScriptedBackend(), always_wrong), speeds, Counter())
    assert len(found.misses) == num_misses


def test_every_contestant_is_timed_in_every_repeat_and_only_auto_is_watched():
    found = hold(_contest(ScriptedBackend()), num_repeats=2)
    assert [len(values) for values in found.raw.values()] == [2, 2, 2]
    rounds = found.found["x: rounds of auto, by drafts"]
    assert set(rounds) == {"3"}
    assert not [miss for miss in found.misses if "another text" in miss]


def test_another_text_is_a_miss():
    class Forgetful(ScriptedBackend):
        """Its wide graph gives another answer than decode."""

        def verify(self, token_ids, position):
            logits, hidden = super().verify(token_ids, position)
            return (logits[:, ::-1] if len(token_ids) == 4 else logits), hidden

    found = hold(_contest(Forgetful()), num_repeats=1)
    assert "x: auto: another text than plain decoding's" in found.misses


def test_the_script_of_a_prompt_is_played_before_its_generations():
    drafter, played = PlayedDrafter(ScriptedBackend()), []

    def play(index: int) -> None:
        played.append(index)
        drafter.script = Script([0] * 128, None)

    contest = _contest(drafter)
    hold(Contest(**{**contest.__dict__, "play": play}), num_repeats=1)
    assert played == 2 * (3 * [0] + 3 * [1])
