"""Outcome after outcome, and what AutoDraftLength decided before each, for a port to repeat."""

from collections.abc import Iterator
from typing import Any

from runtime_py.decoding.policy import Outcome, Round
from runtime_py.draft_length.costs import Known
from runtime_py.draft_length.policy import AutoDraftLength
from tests.runtime_py.scripted_backend import TICK, hashed_logits

_NUM_ROUNDS = 150
# Ticks of a round by its number of drafts, and of a draft; acceptance in percent before and after
# the text changes; what is expected of it.
_DEVICES: list[dict[str, Any]] = [
    {"round": [1000, 1140, 1270, 1370, 1710, 1810, 1910, 2010], "draft": 100, "shares": (85, 20)},
    {"round": [1000, 1890, 2750, 3450, 4440, 5140, 5840, 6540], "draft": 700, "shares": (60, 90)},
    {"round": [1000, 4150, 4400, 4650], "draft": 250, "shares": (70, 70)},
    {"round": [1000, 1190, 2080, 2170], "draft": 90, "shares": (0, 95), "acceptance": 0.3},
    {"round": [1000, 2000, 2600, 4000], "draft": 500, "shares": (95, 0), "acceptance": 0.0},
    {"round": [1000, 2100, 2700, 3100], "draft": 400, "shares": (55, 75), "acceptance": 1.0},
    {"round": [1000, 1100], "draft": 60, "shares": (85, 20)},
]


def recorded_decisions() -> Iterator[dict[str, Any]]:
    """[number of drafts, verified] before each outcome; the outcome's times are in ticks."""
    for seed, device in enumerate(_DEVICES):
        acceptance = device.get("acceptance", 0.7)
        round_s = [ticks * TICK for ticks in device["round"]]
        known = Known(round_s=round_s, draft_s=device["draft"] * TICK, acceptance=acceptance)
        policy = AutoDraftLength(known)
        rounds = []
        for index in range(_NUM_ROUNDS):
            share = device["shares"][index >= _NUM_ROUNDS // 2]
            planned = policy.next_round()
            outcome = _outcome(planned, device, share, 1000 * seed + index)
            rounds.append([[planned.num_drafts, planned.verified], outcome])
            drafted, accepted, draft_ticks, verify_ticks, num_verified = outcome
            policy.observe(
                Outcome(drafted, accepted, draft_ticks * TICK, verify_ticks * TICK, num_verified)
            )
        learnt = policy.to_remember()
        yield {
            "tick": TICK,
            "round": device["round"],
            "draft": device["draft"],
            "acceptance": acceptance,
            "rounds": rounds,
            "remembered": {"round_s": learnt.round_s, "acceptance": learnt.acceptance},
        }


def _outcome(planned: Round, device: dict[str, Any], share: int, seed: int) -> list[int]:
    """A round on a device whose clock is not quite steady."""
    draws = (hashed_logits(seed, 11, 1000)).astype(int).tolist()
    drafted = planned.num_drafts
    hits = [draw < 10 * share for draw in draws[:drafted]]
    accepted = [*hits, False].index(False)
    slow = 4 if draws[8] < 20 else 1
    draft_ticks = drafted * device["draft"]
    verify_ticks = device["round"][drafted if planned.verified else 0]
    verify_ticks -= draft_ticks if planned.verified else 0
    return [
        drafted,
        accepted,
        draft_ticks + drafted * (draws[9] // 20),
        slow * (verify_ticks + draws[10] // 10),
        1 + drafted if planned.verified else 1,
    ]
