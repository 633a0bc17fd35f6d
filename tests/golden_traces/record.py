"""Record what runtime_py's loop does on scripted backends, for its ports to repeat.

The Kotlin tests, the APK's self-test and tests/exporter/webpage/test_page.py replay
tests/golden/loop-traces.json; test_record.py asserts that it is what runtime_py does today.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from runtime_py.decoding.sampling import GREEDY, SamplingParams, gumbel, surviving_tokens
from runtime_py.decoding.session import Session, Stops
from runtime_py.draft_length.costs import Known
from runtime_py.draft_length.policy import AutoDraftLength
from runtime_py.errors import RunError
from tests.golden_traces.checks import recorded_checks
from tests.golden_traces.decisions import recorded_decisions
from tests.golden_traces.described import described
from tests.golden_traces.tokenizers import recorded_tokenizers
from tests.runtime_py.scripted_backend import TICK, ScriptedBackend, hashed_logits

GOLDEN = Path(__file__).parents[1] / "golden" / "loop-traces.json"

PROMPT = [7, 3, 21, 9]
SAMPLINGS = [
    SamplingParams(temperature=0.7, top_k=0, top_p=1.0, seed=1),
    SamplingParams(temperature=1.0, top_k=0, top_p=0.8, seed=2),
    SamplingParams(temperature=1.5, top_k=10, top_p=1.0, seed=3),
    SamplingParams(temperature=0.3, top_k=3, top_p=0.5, seed=2**32 + 5),
    SamplingParams(temperature=4.0, top_k=0, top_p=1.0, seed=2**64 - 1),
    SamplingParams(temperature=0.05, top_k=0, top_p=0.999, seed=6),
]
Turn = dict[str, Any]  # what Session.generate is asked, and what it did
Trace = dict[str, Any]


def record() -> dict[str, list[Any]]:
    """Everything in the file."""
    return {
        "traces": [*_traces()],
        "refusals": [*_refusals()],
        "decisions": [*recorded_decisions()],
        "tokenizers": [*recorded_tokenizers()],
        "checks": [*recorded_checks()],
        "survivors": [*_survivors()],
        "noise": [*_noise()],
    }


def written(values: dict[str, list[Any]]) -> str:
    """One line per trace, so that a change shows where it is."""
    parts = []
    for name, items in values.items():
        lines = ",\n".join(json.dumps(item, separators=(",", ":")) for item in items)
        parts.append(f'"{name}": [\n{lines}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _traces() -> Iterator[Trace]:
    for skill, draft_length in product((0.0, 0.7, 1.0), range(8)):
        yield trace("greedy", [turn(draft_length=draft_length)], skill=skill)
    for sampling, draft_length in product(SAMPLINGS, range(8)):
        yield trace("sampled", [turn(sampling, draft_length=draft_length)], skill=0.8)
    yield from _stopped()
    for sampling, levels in product((GREEDY, *SAMPLINGS[:4]), (2, 5)):
        yield trace("ties", [turn(sampling, draft_length=4)], levels=levels)
    for sampling in (
        SAMPLINGS[1],
        SAMPLINGS[4],
        SamplingParams(temperature=30.0, top_k=0, top_p=0.99, seed=9),
    ):
        yield trace("large vocabulary", [turn(sampling, 12, draft_length=4)], vocab_size=9000)
    for temperature in (1e-320, 1e-199):
        yield trace("cold", [turn(SamplingParams(temperature=temperature, top_k=0, top_p=0.9), 12)])
    yield from _auto()
    for second in ([5, 6], [*PROMPT, 1, 2], PROMPT[:2]):
        turns = [
            turn(SAMPLINGS[0], 9, draft_length=3),
            turn(GREEDY, 9, draft_length=5, prompt=second),
        ]
        yield trace("second prompt", turns, skill=0.9)


def _auto() -> Iterator[Trace]:
    """The policy decides, by costs on the backend's own clock and by what is accepted."""
    devices = ((100, 1000, 1040, 1070, 1310), (400, 1000, 1700, 1900, 2500))
    for skill, ticks in product((0.0, 0.6, 0.9, 1.0), devices):
        sampling = SAMPLINGS[1] if skill == 0.9 else GREEDY
        turns = [turn(sampling, 90, draft_length="auto"), turn(GREEDY, 40, draft_length="auto")]
        yield trace("auto", turns, skill=skill, cache_length=256, ticks=ticks)


def _stopped() -> Iterator[Trace]:
    """Every kind of end, at every place of a round of six tokens."""
    perfect = {"skill": 1.0, "vocab_size": 4000, "verify_widths": (1, 2, 4, 6)}
    for sampling in (GREEDY, SAMPLINGS[0]):
        plain = trace("", [turn(sampling, 14)], **perfect)
        token_ids = [token for step in plain["turns"][0]["steps"] for token in step[0]]
        for stop_id in token_ids[:13]:
            yield trace("stop", [turn(sampling, draft_length=5, stop_ids=(stop_id,))], **perfect)
    for max_new_tokens in range(1, 14):
        yield trace("max tokens", [turn(SAMPLINGS[1], max_new_tokens, draft_length=5)], **perfect)
    for room in range(1, 14):
        context_length = len(PROMPT) + room
        yield trace("context end", [turn(draft_length=5)], context_length, **perfect)
        # The graphs' padding must fit the rows too.
        yield trace("cache end", [turn(draft_length=7)], skill=1.0, cache_length=context_length)


def turn(sampling: SamplingParams = GREEDY, max_new_tokens: int = 40, **asked: Any) -> Turn:
    """One call of Session.generate."""
    prompt, stop_ids = asked.get("prompt", PROMPT), asked.get("stop_ids", ())
    return {
        "prompt": list(prompt),
        # A seed has 64 bits, more than some readers of JSON keep.
        "law": asdict(sampling) | {"seed": str(sampling.seed)},
        "max_new_tokens": max_new_tokens,
        "stop_ids": list(stop_ids),
        "draft_length": asked.get("draft_length", 0),
    }


def trace(
    name: str, turns: Sequence[Turn], context_length: int = 1000, **backend_options: Any
) -> Trace:
    """The steps of one session: [token ids, number drafted, number accepted] each."""
    backend = ScriptedBackend(**backend_options)
    session = Session(backend, context_length)
    policy = _policy(backend)
    with patch("runtime_py.decoding.session.time.perf_counter", backend.seconds):
        done = [asked | {"steps": _steps(session, asked, policy)} for asked in turns]
    return {
        "name": name,
        "backend": described(backend),
        "context_length": context_length,
        "turns": done,
    }


def _policy(backend: ScriptedBackend) -> AutoDraftLength:
    """As runtime_py/draft_length/measure.py makes it, with what the backend's calls really cost."""
    width_ticks, draft = backend.verify_ticks, backend.draft_ticks * TICK
    widths = sorted(width_ticks)
    round_s = [
        length * draft + width_ticks[next(width for width in widths if width > length)] * TICK
        for length in range(widths[-1])
    ]
    return AutoDraftLength(Known(round_s=round_s, draft_s=draft, acceptance=0.7))


def _steps(session: Session, asked: Turn, policy: AutoDraftLength) -> list[Any]:
    sampling = SamplingParams(**asked["law"] | {"seed": int(asked["law"]["seed"])})
    stops = Stops(max_new_tokens=asked["max_new_tokens"], token_ids=frozenset(asked["stop_ids"]))
    length = policy if asked["draft_length"] == "auto" else asked["draft_length"]
    steps = session.generate(asked["prompt"], sampling, stops, length)
    return [[list(step.token_ids), step.num_drafted, step.num_accepted] for step in steps]


def _refusals() -> Iterator[Trace]:
    cases = [
        turn(prompt=[]),
        turn(prompt=[1] * 128),
        turn(prompt=[40]),
        turn(prompt=[-1]),
        turn(draft_length=8),
        turn(draft_length=-1),
        turn(max_new_tokens=0),
    ]
    backend = ScriptedBackend()
    for asked in cases:
        try:
            _steps(Session(backend, 1000), asked, _policy(backend))
        except RunError as error:
            yield {"backend": described(backend), "turn": asked, "said": str(error)}


def _survivors() -> Iterator[dict[str, Any]]:
    """Ids that top-k and top-p leave of one row."""
    for size, levels in ((1, 0), (50, 0), (50, 3), (300, 7), (300, 0)):
        for top_k, top_p in ((0, 0.5), (10, 1.0), (7, 0.7), (0, 0.97), (1, 0.1), (25, 0.999)):
            sampling = SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p)
            seed = 1000 * size + levels
            yield {
                "seed": seed,
                "size": size,
                "levels": levels,
                "law": asdict(sampling) | {"seed": "0"},
                "token_ids": surviving_tokens(hashed_logits(seed, size, levels), sampling)[
                    0
                ].tolist(),
            }


def _noise() -> Iterator[dict[str, Any]]:
    for seed in (0, 7, 2**32, 2**63, 2**64 - 1):
        for position in (1, 4095, 2**31 - 1):
            token_ids = [0, 1, 262143]
            values = gumbel(seed, position, np.array(token_ids))
            yield {
                "seed": str(seed),
                "position": position,
                "token_ids": token_ids,
                "values": values.tolist(),
            }
