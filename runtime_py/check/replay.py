"""Replay the recorded original from the bundle alone and say where the two agree.

Three replays: the session decodes every prompt plainly and speculatively; the target is walked
along the original's own text, so that its logits can be compared row by row; the drafter proposes
after each of the original's tokens, so that its acceptance can be compared with the original's.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from runtime_py.backends import Backend, SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bench.measure import TimedBackend
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName, Tolerances
from runtime_py.bundle.reference import Ids, Reference, acceptance
from runtime_py.decoding.sampling import GREEDY
from runtime_py.decoding.session import Session, Stops

# Relative to the largest logit: a smaller margin between two tokens is a tie that rounding decides.
MAX_TIE = 1e-3
# The same, of float32 alone. A sum of 4096 products is off by about sqrt(4096) roundings of 2**-24
# each, and the two logits of a tie by that together: 2 * 64 * 2**-24.
ROUNDING_TIE = 2.0**-17
Progress = Callable[[int], None]  # called with the number of prompts done


@dataclass(frozen=True)
class Difference:
    """The first place where two texts differ."""

    prompt: int  # index
    token: int  # index of the generated token
    margin: float  # of the reference side's logits there: how near a tie it was


@dataclass(frozen=True)
class Comparison:
    """Generated tokens against tokens that should be equal."""

    num_equal: int  # tokens before the first difference, over all prompts
    num_tokens: int
    num_prompts_equal: int
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        return not self.differences

    @property
    def smallest_margin(self) -> float | None:
        return min((difference.margin for difference in self.differences), default=None)


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `gemma-run check` found."""

    original: Comparison  # plain decoding of the bundle against the original
    speculative: Comparison  # speculative against plain decoding, both of the bundle
    agreement: float  # share of greedy tokens equal, the original's text given, ties left out
    num_ties: int  # tokens that differ where float32's rounding decides between two
    logit_error: float  # largest difference, relative to the original's largest logit
    acceptance: tuple[float, ...]  # by draft position, on the original's text
    original_acceptance: tuple[float, ...]  # the same, of the original drafter
    accepted_per_round: float  # in the speculative replay
    draft_length: int
    round_cost: float | None = None  # of drafts and their verify, in decodes, on this device
    failures: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def tokens_per_round(self) -> float:
        """A round pays where it costs less than as many decodes."""
        return 1 + self.accepted_per_round


def check_bundle(
    bundle: Bundle,
    runtime: RuntimeName,
    options: SessionOptions,
    progress: Progress = lambda _: None,
) -> CheckReport:
    """Load one runtime of a bundle and replay the bundle's reference on it."""
    with closing(TimedBackend(load_backend(bundle, runtime, options))) as backend:
        report = run_check(
            Session(backend, bundle.manifest.model.context_length),
            backend,
            bundle.reference(),
            bundle.entry(runtime).tolerances,
            progress,
        )
        return replace(report, round_cost=round_cost(backend, report.draft_length))


def round_cost(backend: TimedBackend, draft_length: int) -> float | None:
    """How many decodes a round of this many drafts costs, by the calls that were timed."""
    verify = f"verify {draft_length + 1}"
    if not draft_length or not {"decode", "draft", verify} <= set(backend.calls):
        return None
    means = {stage: backend.seconds[stage] / count for stage, count in backend.calls.items()}
    return (draft_length * means["draft"] + means[verify]) / means["decode"]


def run_check(
    session: Session,
    backend: Backend,
    reference: Reference,
    tolerances: Tolerances,
    progress: Progress = lambda _: None,
) -> CheckReport:
    """Replay a reference on a loaded backend.

    The draft length is the recorded one, or 0 for a bundle without drafter.
    """
    draft_length = reference.draft_ids.shape[2] if backend.has_drafter else 0
    num_prompts, num_tokens = reference.greedy_ids.shape
    replay = _Replay(backend, reference)
    plain, fast = np.zeros((2, num_prompts, num_tokens), np.int32)
    drafts = np.zeros((num_prompts, reference.draft_ids.shape[1], draft_length), np.int32)
    num_accepted: list[int] = []
    for index, prompt_ids in enumerate(reference.prompt_ids):
        stops, prompt = Stops(max_new_tokens=num_tokens), prompt_ids.tolist()
        plain[index] = _tokens(session, prompt, stops)
        session.committed.clear()  # each replay computes its own rows
        steps = list(session.generate(prompt, GREEDY, stops, draft_length))
        fast[index] = [token_id for step in steps for token_id in step.token_ids]
        num_accepted += [step.num_accepted for step in steps if step.num_drafted == draft_length]
        session.committed.clear()
        hiddens = replay.walk(index)
        if draft_length:
            drafts[index] = replay.propose(index, hiddens)
        session.committed.clear()  # the walk wrote over the session's rows
        progress(index + 1)
    differences = _differences(plain, reference.greedy_ids, reference.margins)
    report = CheckReport(
        original=_compare(plain, differences),
        speculative=_compare(plain, _spec_differences(replay, plain, fast)),
        agreement=replay.agreement,
        num_ties=replay.num_ties,
        logit_error=replay.max_error / reference.logit_scale,
        acceptance=_shares(drafts, reference.greedy_ids),
        original_acceptance=_shares(reference.draft_ids, reference.greedy_ids),
        accepted_per_round=float(np.mean(num_accepted)) if draft_length and num_accepted else 0.0,
        draft_length=draft_length,
    )
    return _judge(report, tolerances, reference.logit_scale)


def _tokens(session: Session, prompt_ids: list[int], stops: Stops) -> list[int]:
    steps = session.generate(prompt_ids, GREEDY, stops, 0)
    return [token_id for step in steps for token_id in step.token_ids]


class _Replay:
    """Walks the target along the original's text, and along its own, for margins."""

    def __init__(self, backend: Backend, reference: Reference) -> None:
        self._backend = backend
        self._reference = reference
        self.max_error = 0.0
        self.num_agreed = self.num_ties = 0

    @property
    def agreement(self) -> float:
        return self.num_agreed / max(1, self._reference.greedy_ids.size - self.num_ties)

    def walk(self, index: int) -> npt.NDArray[np.float32]:
        """Compare the logits along prompt `index`; returns the hidden states, [M, D]."""
        reference = self._reference
        prompt_ids = reference.prompt_ids[index].tolist()
        text = [*prompt_ids, *reference.greedy_ids[index].tolist()]
        start, end = len(prompt_ids) - 1, len(text) - 1
        if start:
            self._backend.prefill(text[:start], 0)
        hiddens = []
        position = start
        while position < end:
            width = self._width(position, end)
            logits, hidden = self._backend.verify(text[position : position + width], position)
            for row in range(width):
                self._compare(logits[row], index, position + row - start)
            hiddens.append(hidden.copy())
            position += width
        return np.concatenate(hiddens)

    def _width(self, position: int, end: int) -> int:
        room = min(end, self._backend.cache_length) - position
        return max(width for width in self._backend.verify_widths if width <= room)

    def _compare(self, logits: npt.NDArray[np.float32], index: int, token: int) -> None:
        reference = self._reference
        probes = logits[reference.probe_ids[index, token]]
        error = float(np.abs(probes - reference.probe_logits[index, token]).max())
        # Not-a-number must not hide behind a comparison that is false.
        self.max_error = max(self.max_error, error if np.isfinite(error) else float("inf"))
        chosen = int(np.argmax(logits))
        if chosen == reference.greedy_ids[index, token]:
            self.num_agreed += 1
        elif reference.behind(index, token, chosen) <= ROUNDING_TIE * reference.logit_scale:
            self.num_ties += 1

    def propose(self, index: int, hiddens: npt.NDArray[np.float32]) -> Ids:
        """[S, K] what the drafter proposes after each of the original's tokens."""
        reference = self._reference
        num_rounds, draft_length = reference.draft_ids.shape[1:]
        drafts = np.zeros((num_rounds, draft_length), np.int32)
        for token in range(num_rounds):
            last, hidden = int(reference.greedy_ids[index, token]), hiddens[token]
            committed = len(reference.prompt_ids[index]) + token
            for j in range(draft_length):
                logits, hidden = self._backend.draft(last, hidden, committed)
                last = drafts[token, j] = int(np.argmax(logits))
        return drafts

    def margin(self, index: int, token_ids: list[int]) -> float:
        """How far the best logit is above the next after these tokens of prompt `index`."""
        text = [*self._reference.prompt_ids[index].tolist(), *token_ids]
        if len(text) > 1:
            self._backend.prefill(text[:-1], 0)
        logits, _ = self._backend.verify(text[-1:], len(text) - 1)
        second, first = np.partition(logits[0], -2)[-2:]
        margin = float(first - second)
        return margin if math.isfinite(margin) else math.inf


def _differences(
    found: Ids, wanted: Ids, margins: npt.NDArray[np.float32]
) -> tuple[Difference, ...]:
    return tuple(
        Difference(prompt, token, float(margins[prompt, token]))
        for prompt, token in _first_differences(found, wanted)
    )


def _spec_differences(replay: _Replay, plain: Ids, fast: Ids) -> tuple[Difference, ...]:
    return tuple(
        Difference(prompt, token, replay.margin(prompt, plain[prompt, :token].tolist()))
        for prompt, token in _first_differences(fast, plain)
    )


def _first_differences(found: Ids, wanted: Ids) -> list[tuple[int, int]]:
    differs = found != wanted
    return [(int(row), int(differs[row].argmax())) for row in np.flatnonzero(differs.any(axis=1))]


def _compare(tokens: Ids, differences: tuple[Difference, ...]) -> Comparison:
    num_prompts, num_tokens = tokens.shape
    lost = sum(num_tokens - difference.token for difference in differences)
    return Comparison(tokens.size - lost, tokens.size, num_prompts - len(differences), differences)


def _shares(draft_ids: Ids, greedy_ids: Ids) -> tuple[float, ...]:
    if not draft_ids.size:
        return ()
    return tuple(float(share) for share in acceptance(draft_ids, greedy_ids))


def _judge(report: CheckReport, tolerances: Tolerances, logit_scale: float) -> CheckReport:
    failures: list[str] = []
    # Written so that not-a-number fails: every comparison with it is false.
    if not report.logit_error <= tolerances.max_logit_error:
        failures.append(
            f"logits differ from the original's by {report.logit_error:.2g} of their scale, "
            f"allowed {tolerances.max_logit_error:.2g}"
        )
    if not report.agreement >= tolerances.min_agreement:
        failures.append(
            f"only {report.agreement:.1%} of tokens agree with the original, "
            f"needed {tolerances.min_agreement:.1%}"
        )
    failures += _differences_that_are_no_ties(report, tolerances, logit_scale)
    wanted = [tolerances.min_acceptance_ratio * share for share in report.original_acceptance]
    if report.draft_length and report.acceptance[0] < wanted[0]:
        failures.append(
            f"the drafter is broken or mis-wired: {report.acceptance[0]:.1%} of first drafts "
            f"accepted, the original drafter has {report.original_acceptance[0]:.1%}, "
            f"needed {wanted[0]:.1%}"
        )
    return replace(report, failures=tuple(failures))


def _differences_that_are_no_ties(
    report: CheckReport, tolerances: Tolerances, logit_scale: float
) -> list[str]:
    failures = []
    # Two widths of one graph may round differently, so a near tie may fall either way.
    tie = min(tolerances.max_logit_error, MAX_TIE) * logit_scale
    margin = max((difference.margin for difference in report.speculative.differences), default=0.0)
    if not margin <= tie:
        failures.append(
            f"speculative output differs from plain decoding where the margin is {margin:.2g}; "
            f"under {tie:.2g} it would be a tie, so the graphs disagree"
        )
    # A lossy recipe may say something else than the original; an exact one only at a tie.
    margin = max((difference.margin for difference in report.original.differences), default=0.0)
    if tolerances.max_logit_error <= MAX_TIE and not margin <= 2 * tie:
        failures.append(
            f"plain decoding leaves the original's text where the margin is {margin:.2g}; "
            f"under {2 * tie:.2g} it would be a tie"
        )
    return failures
