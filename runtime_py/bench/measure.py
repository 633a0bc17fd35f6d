"""Measure a bundle on this device: plain and speculative decoding, and where the time goes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from runtime_py.backends import Backend, FloatArray
from runtime_py.decoding.policy import DraftLength
from runtime_py.decoding.sampling import GREEDY, SamplingParams
from runtime_py.decoding.session import Session, Step, Stops


class TimedBackend:
    """A backend that adds up the seconds and calls spent inside each stage."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    @property
    def vocab_size(self) -> int:
        return self._backend.vocab_size

    @property
    def hidden_size(self) -> int:
        return self._backend.hidden_size

    @property
    def cache_length(self) -> int:
        return self._backend.cache_length

    @property
    def verify_widths(self) -> tuple[int, ...]:
        return self._backend.verify_widths

    @property
    def resumable_from(self) -> int:
        return self._backend.resumable_from

    @property
    def has_drafter(self) -> bool:
        return self._backend.has_drafter

    @property
    def total_s(self) -> float:
        """Seconds inside the backend, all stages together."""
        return sum(self.seconds.values())

    def reset(self) -> None:
        self.seconds.clear()
        self.calls.clear()

    def _add(self, stage: str, start: float) -> None:
        elapsed = time.perf_counter() - start
        self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed
        self.calls[stage] = self.calls.get(stage, 0) + 1

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        start = time.perf_counter()
        self._backend.prefill(token_ids, position)
        self._add("prefill", start)

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        start = time.perf_counter()
        result = self._backend.verify(token_ids, position)
        self._add("decode" if len(token_ids) == 1 else f"verify {len(token_ids)}", start)
        return result

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        start = time.perf_counter()
        result = self._backend.draft(token_id, hidden, position)
        self._add("draft", start)
        return result

    def close(self) -> None:
        self._backend.close()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generation, timed from its first decode call on."""

    steps: tuple[Step, ...]
    seconds: float
    prefill_s: float
    stage_s: dict[str, float] = field(default_factory=dict)  # inside the backend
    stage_calls: dict[str, int] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return sum(len(step.token_ids) for step in self.steps)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def num_rounds(self) -> int:
        """Rounds with drafts."""
        return sum(step.num_drafted > 0 for step in self.steps)

    @property
    def num_accepted(self) -> int:
        return sum(step.num_accepted for step in self.steps)

    @property
    def accepted_per_round(self) -> float:
        return self.num_accepted / self.num_rounds if self.num_rounds else 0.0

    @property
    def stage_ms(self) -> dict[str, float]:
        """Milliseconds per call."""
        return {
            stage: 1000 * self.stage_s[stage] / num_calls
            for stage, num_calls in sorted(self.stage_calls.items())
        }

    @property
    def outside_share(self) -> float:
        """Share of the time spent outside the backend."""
        return 1 - sum(self.stage_s.values()) / (self.seconds + self.prefill_s)


def timed_run(
    session: Session,
    backend: TimedBackend,
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    *,
    max_new_tokens: int,
    draft_length: int | DraftLength,
) -> Run:
    """Generate once from an empty cache; stop tokens are ignored."""
    session.committed.clear()
    backend.reset()
    stops = Stops(max_new_tokens=max_new_tokens)
    start = time.perf_counter()
    steps = tuple(session.generate(prompt_ids, sampling, stops, draft_length))
    total_s = time.perf_counter() - start
    prefill_s = backend.seconds.get("prefill", 0.0)
    return Run(
        steps=steps,
        seconds=total_s - prefill_s,
        prefill_s=prefill_s,
        stage_s=dict(backend.seconds),
        stage_calls=dict(backend.calls),
    )


Length = int | Literal["auto"]


@dataclass(frozen=True)
class Contest:
    """Every repeat of every candidate."""

    runs: dict[Length, list[Run]]  # ours, by draft length
    others: dict[str, list[float]]  # tokens/s of other runtimes, by name


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    max_new_tokens: int
    num_repeats: int  # besides one that warms up
    num_prompts: int = 4  # the bundle's first


# Generates after prompt number i; returns tokens per second.
Candidate = Callable[[int], float]
# Makes the draft-length policy of a new generation.
Policies = Mapping[Length, Callable[[], int | DraftLength]]


def compare_draft_lengths(
    session: Session,
    backend: TimedBackend,
    prompts: Sequence[Sequence[int]],
    effort: Effort,
    candidates: tuple[Policies, Mapping[str, Candidate]],
    progress: Callable[[int], None] = lambda _: None,
) -> Contest:
    """Let all candidates take turns, so that a machine that slows down affects all alike.

    `progress` is called with the rounds done, one for each prompt of each repeat.
    """
    ours, others = candidates
    found = Contest({length: [] for length in ours}, {name: [] for name in others})
    for repeat in range(effort.num_repeats + 1):
        for index, prompt_ids in enumerate(prompts):
            runs = {
                length: timed_run(
                    session,
                    backend,
                    prompt_ids,
                    GREEDY,
                    max_new_tokens=effort.max_new_tokens,
                    draft_length=policy(),
                )
                for length, policy in ours.items()
            }
            speeds = {name: generate(index) for name, generate in others.items()}
            if repeat:  # the first pass warms up
                for length, run in runs.items():
                    found.runs[length].append(run)
                for name, speed in speeds.items():
                    found.others[name].append(speed)
                progress((repeat - 1) * len(prompts) + index + 1)
    return found
