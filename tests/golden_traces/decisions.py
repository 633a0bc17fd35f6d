"""Outcome after outcome, and what AutoDraftLength decided before each, for a port to repeat."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime_py.decoding.policy import Outcome, Round
from runtime_py.draft_length.costs import Costs
from runtime_py.draft_length.policy import AutoDraftLength
from tests.runtime_py.scripted_backend import TICK, hashed_logits

_NUM_ROUNDS = 150
_SHORT = TICK / 32  # then several rounds are learnt from together
# Ticks of draft, and of verify by width; acceptance in percent before and after the text changes;
# lengths; prior and gain; seconds of a tick.
_DEVICES: list[dict[str, Any]] = [
    {"draft": 100, "verify": {1: 1000, 2: 1040, 4: 1070, 8: 1310}, "shares": (85, 20)},
    {"draft": 700, "verify": {1: 1000, 2: 1190, 4: 1350, 8: 1640}, "shares": (60, 90)},
    {"draft": 250, "verify": {1: 1000, 4: 3900}, "shares": (70, 70), "lengths": [3]},
    {"draft": 90, "verify": {1: 1000, 2: 1100, 8: 1900}, "shares": (0, 95), "prior": 0.3},
    {"draft": 500, "verify": {1: 1000, 2: 1500, 3: 1600, 8: 2500}, "shares": (95, 0), "gain": 0.1},
    {"draft": 400, "verify": {1: 1000, 2: 1700, 4: 1900}, "shares": (55, 75), "prior": 0.99},
    {"draft": 100, "verify": {1: 1000, 2: 1040, 8: 1310}, "shares": (85, 20), "tick": _SHORT},
    {
        "draft": 700,
        "verify": {1: 1000, 2: 1190, 8: 1640},
        "shares": (80, 95),
        "tick": _SHORT,
        "first": 0.25,
    },
]


def recorded_decisions() -> Iterator[dict[str, Any]]:
    """[number of drafts, verified] before each outcome; the outcome's times are in ticks."""
    for seed, device in enumerate(_DEVICES):
        draft, verify = device["draft"], device["verify"]
        lengths = device.get("lengths", list(range(8)))
        prior, gain = device.get("prior", 0.7), device.get("gain", 0.0)
        tick = device.get("tick", TICK)
        seconds = {num_tokens: ticks * tick for num_tokens, ticks in verify.items()}
        first = device.get("first", 0.0)
        costs = Costs(draft * tick, seconds, first=first)
        policy = AutoDraftLength(costs, lengths, prior, gain)
        rounds = []
        for index in range(_NUM_ROUNDS):
            share = device["shares"][index >= _NUM_ROUNDS // 2]
            planned = policy.next_round()
            outcome = _outcome(planned, device, share, 1000 * seed + index)
            rounds.append([[planned.num_drafts, planned.verified], outcome])
            drafted, accepted, draft_ticks, verify_ticks, num_verified = outcome
            policy.observe(
                Outcome(drafted, accepted, draft_ticks * tick, verify_ticks * tick, num_verified)
            )
        yield {
            "tick": tick,
            "draft": draft,
            "verify": list(verify.items()),
            "first": first,
            "lengths": lengths,
            "prior": prior,
            "gain": gain,
            "rounds": rounds,
        }


def _outcome(planned: Round, device: dict[str, Any], share: int, seed: int) -> list[int]:
    """A round on a device whose clock is not quite steady."""
    draws = (hashed_logits(seed, 11, 1000)).astype(int).tolist()
    drafted = planned.num_drafts
    hits = [draw < 10 * share for draw in draws[:drafted]]
    accepted = [*hits, False].index(False)
    num_verified = 1 + drafted if planned.verified else 1
    ticks = np.interp(num_verified, list(device["verify"]), list(device["verify"].values()))
    slow = 4 if draws[8] < 20 else 1
    return [
        drafted,
        accepted,
        drafted * (device["draft"] + draws[9] // 20),
        slow * (int(ticks) + draws[10] // 10),
        num_verified,
    ]
