"""A reference.npz and what run_check says of backends that keep to it, or do not."""

import base64
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.bundle.manifest import Tolerances
from runtime_py.bundle.reference import Reference, pooled_acceptance, write_reference
from runtime_py.check.replay import run_check
from runtime_py.decoding.sampling import GREEDY
from runtime_py.decoding.session import Session, Stops
from tests.golden_traces.described import described
from tests.runtime_py.scripted_backend import ScriptedBackend

_PROMPTS = ((7, 3, 21, 9), (5,), (1, 2))
_NUM_TOKENS, _DRAFT_LENGTH, _NUM_PROBES = 9, 3, 4


def recorded_checks() -> Iterator[dict[str, Any]]:
    """The original has a drafter that is right at 80 of 100 positions."""
    reference = _reference()
    for options, tolerances, recorded in (
        ({"skill": 0.8}, Tolerances(max_logit_error=1e-4, min_agreement=1.0), reference),
        ({"skill": 0.0}, Tolerances(max_logit_error=1e-4), reference),
        (
            {"skill": 0.8, "levels": 900},
            Tolerances(max_logit_error=1e-4, min_agreement=0.5),
            reference,
        ),
        ({"skill": 0.8}, Tolerances(max_logit_error=1.0, min_agreement=1.0), _tied(reference)),
    ):
        backend = ScriptedBackend(**options)
        report = run_check(Session(backend, 128), backend, recorded, tolerances)
        yield {
            "reference": _stored(recorded),
            "backend": described(backend),
            "tolerances": tolerances.model_dump(),
            "num_equal": [report.original.num_equal, report.speculative.num_equal],
            "agreement": report.agreement,
            "num_ties": report.num_ties,
            "logit_error": report.logit_error,
            "acceptance": list(report.acceptance),
            "original_acceptance": list(report.original_acceptance),
            "pooled_acceptance": pooled_acceptance(recorded),
            "num_failures": len(report.failures),
        }


def _stored(reference: Reference) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.npz"
        write_reference(path, reference)
        return base64.b64encode(path.read_bytes()).decode()


def _tied(reference: Reference) -> Reference:
    """The last tokens of two texts are the second best: by a hair, and by more."""
    greedy_ids, probe_ids = reference.greedy_ids.copy(), reference.probe_ids.copy()
    probe_logits = reference.probe_logits.copy()
    for prompt, margin in ((0, 5e-6), (1, 1e-3)):
        probe_ids[prompt, -1, :2] = probe_ids[prompt, -1, 1::-1]
        greedy_ids[prompt, -1] = probe_ids[prompt, -1, 0]
        best = probe_logits[prompt, -1, 0]
        probe_logits[prompt, -1, :2] = best + margin * reference.logit_scale, best
    return replace(reference, greedy_ids=greedy_ids, probe_ids=probe_ids, probe_logits=probe_logits)


def _reference() -> Reference:
    backend = ScriptedBackend(skill=0.8)
    session = Session(backend, 128)
    greedy, logits, drafts = [], [], []
    for prompt in _PROMPTS:
        steps = session.generate(prompt, GREEDY, Stops(max_new_tokens=_NUM_TOKENS), 0)
        greedy.append([token_id for step in steps for token_id in step.token_ids])
        session.committed.clear()
        text, rounds = [*prompt, *greedy[-1]], []
        for position in range(len(prompt) - 1, len(text) - 1):
            if position:
                backend.prefill(text[:position], 0)
            rows, hiddens = backend.verify(text[position : position + 1], position)
            logits.append(rows[0])
            if len(rounds) < _NUM_TOKENS - _DRAFT_LENGTH:
                rounds.append(_drafts(backend, text[position + 1], hiddens[0], position + 1))
        drafts.append(rounds)
    rows = np.array(logits).reshape(len(_PROMPTS), _NUM_TOKENS, -1)
    probe_ids = np.argsort(-rows, axis=-1, kind="stable")[..., :_NUM_PROBES].astype(np.int32)
    return Reference(
        prompts=tuple(str(prompt) for prompt in _PROMPTS),
        prompt_ids=tuple(np.array(prompt, np.int32) for prompt in _PROMPTS),
        greedy_ids=np.array(greedy, np.int32),
        probe_ids=probe_ids,
        probe_logits=np.take_along_axis(rows, probe_ids, axis=-1),
        logit_scale=float(np.abs(rows).max()),
        draft_ids=np.array(drafts, np.int32),
    )


def _drafts(backend: ScriptedBackend, last: int, hidden: Any, position: int) -> list[int]:
    drafts = []
    for _ in range(_DRAFT_LENGTH):
        logits, hidden = backend.draft(last, hidden, position)
        last = int(np.argmax(logits))
        drafts.append(last)
    return drafts
