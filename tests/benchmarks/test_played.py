"""What replays play: the drafts that are right, the text, and that the real calls are made."""

from collections.abc import Sequence

import numpy as np
import pytest

from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session, Step, Stops
from tests.benchmarks.played import (
    E2B,
    PlayedDrafter,
    PlayedTarget,
    Script,
    Stretch,
    conditional,
    draw_hits,
)
from tests.runtime_py.scripted_backend import ScriptedBackend

PROMPT = [3, 1, 4]


def _generate(backend, draft_length: int, num_tokens: int = 40) -> list[Step]:
    session = Session(backend, backend.cache_length)
    stops = Stops(max_new_tokens=num_tokens)
    return list(session.generate(PROMPT, SamplingParams(), stops, draft_length))


def _tokens(steps: Sequence[Step]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]


def test_a_wrong_drafter_is_always_wrong_and_changes_no_token():
    real = ScriptedBackend(skill=1.0)
    text = _tokens(_generate(real, 0))
    drafter = PlayedDrafter(real)
    drafter.script = Script([*PROMPT, *text], None)
    before = dict(real.num_calls)
    steps = _generate(drafter, 3)
    assert _tokens(steps) == text
    assert sum(step.num_accepted for step in steps) == 0
    # As many calls as without a single hit: the first round has no hidden state to draft from,
    # the last ones have fewer tokens left.
    assert real.num_calls["verify"] - before["verify"] == 40
    assert real.num_calls["draft"] - before["draft"] == 38 * 3 - (1 + 2)


def test_a_drafter_without_a_script_is_the_real_one():
    real = ScriptedBackend(skill=0.7)
    assert _generate(PlayedDrafter(real), 3) == _generate(real, 3)


@pytest.mark.parametrize("draft_length", [0, 1, 3, 7])
def test_a_played_target_says_the_script_and_keeps_the_drafts_that_are_hits(draft_length):
    real = ScriptedBackend()
    target = PlayedTarget(real)
    drafter = PlayedDrafter(target)
    text = np.random.default_rng(5).integers(0, real.vocab_size, real.cache_length).tolist()
    text[:3] = PROMPT
    hits = draw_hits([Stretch(1, (0.8, 0.5))], real.cache_length, 7, seed=2)
    target.text, drafter.script = text, Script(text, hits)
    steps = _generate(drafter, draft_length)
    assert _tokens(steps) == text[3:43]
    position = len(PROMPT)
    for step in steps[1:]:
        allowed = hits[position, : step.num_drafted]
        assert step.num_accepted == int(np.cumprod(allowed).sum())
        position += len(step.token_ids)


def test_hits_have_the_profile_by_position():
    shares = conditional(E2B)
    hits = draw_hits([Stretch(10, shares)], 20000, 4, seed=0)
    kept = np.cumprod(hits, axis=1).mean(axis=0)
    assert kept == pytest.approx([0.84, 0.60, 0.39, 0.39 * shares[-1]], abs=0.01)


def test_stretches_take_turns():
    hits = draw_hits([Stretch(8, (1.0,)), Stretch(4, (0.0,))], 30, 2, seed=0)
    assert hits[:, 0].tolist() == [i % 12 < 8 for i in range(30)]
