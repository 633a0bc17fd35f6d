"""Measure a bundle on this device: plain and speculative decoding, and where the time goes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from runtime_py import official
from runtime_py.backends import Backend, FloatArray
from runtime_py.sampling import SamplingLaw
from runtime_py.speculative import Session, Stops


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

    draft_length: int
    num_tokens: int
    seconds: float
    prefill_s: float
    num_rounds: int
    num_accepted: int
    stage_ms: dict[str, float] = field(default_factory=dict)  # milliseconds per call
    outside_share: float = 0.0  # of the time, spent outside the backend

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def accepted_per_round(self) -> float:
        return self.num_accepted / self.num_rounds if self.num_rounds else 0.0


def timed_run(
    session: Session,
    backend: TimedBackend,
    prompt_ids: Sequence[int],
    law: SamplingLaw,
    *,
    max_new_tokens: int,
    draft_length: int,
) -> Run:
    """Generate once, from a fresh sequence; stop tokens are ignored."""
    session.committed.clear()
    backend.reset()
    start = time.perf_counter()
    steps = list(
        session.generate(prompt_ids, law, Stops(max_new_tokens=max_new_tokens), draft_length)
    )
    total_s = time.perf_counter() - start
    rounds = [step for step in steps if step.num_drafted]
    return Run(
        draft_length=draft_length,
        num_tokens=sum(len(step.token_ids) for step in steps),
        seconds=total_s - backend.seconds.get("prefill", 0.0),
        prefill_s=backend.seconds.get("prefill", 0.0),
        num_rounds=len(rounds),
        num_accepted=sum(step.num_accepted for step in rounds),
        stage_ms={
            stage: 1000 * seconds / backend.calls[stage]
            for stage, seconds in sorted(backend.seconds.items())
        },
        outside_share=1 - backend.total_s / total_s,
    )


@dataclass(frozen=True)
class Contest:
    """Every repeat of every contestant."""

    runs: dict[int, list[Run]]  # ours, by draft length
    others: dict[str, list[float]]  # tokens/s of other runtimes, by name


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    max_new_tokens: int
    num_repeats: int  # besides one that warms up


# Generates after prompt number i and says at how many tokens per second.
Contestant = Callable[[int], float]


def compare_draft_lengths(
    session: Session,
    backend: TimedBackend,
    prompts: Sequence[Sequence[int]],
    effort: Effort,
    others: Mapping[str, Contestant],
    progress: Callable[[int], None] = lambda _: None,
) -> Contest:
    """Let all draft lengths and other runtimes take turns, so that drift hits all alike.

    `progress` is called with the rounds done, one for each prompt of each repeat.
    """
    found = Contest(
        {length: [] for length in draft_lengths(backend)}, {name: [] for name in others}
    )
    for repeat in range(effort.num_repeats + 1):
        for index, prompt_ids in enumerate(prompts):
            runs = [
                timed_run(
                    session,
                    backend,
                    prompt_ids,
                    SamplingLaw(),
                    max_new_tokens=effort.max_new_tokens,
                    draft_length=length,
                )
                for length in found.runs
            ]
            speeds = {name: generate(index) for name, generate in others.items()}
            if repeat:  # the first pass warms up
                for run in runs:
                    found.runs[run.draft_length].append(run)
                for name, speed in speeds.items():
                    found.others[name].append(speed)
                progress((repeat - 1) * len(prompts) + index + 1)
    return found


def draft_lengths(backend: Backend) -> list[int]:
    """Those worth a measurement: 0, and one less than each power of two that verify can take.

    LiteRT has one graph for each of these widths; ExecuTorch takes any in between, too.
    """
    if not backend.has_drafter:
        return [0]
    return [width - 1 for width in backend.verify_widths if width & (width - 1) == 0]


@contextmanager
def official_contestants(
    model: Path, prompts: Sequence[str], *, mtp: bool, max_new_tokens: int, num_threads: int
) -> Iterator[dict[str, Contestant]]:
    """Google's runtime on the same file, without the drafter and with it; empty if it cannot.

    Args:
        prompts: text without its start token, which that runtime adds.
        mtp: whether the file has a drafter; that runtime fails without.
    """
    with ExitStack() as stack:
        contestants: dict[str, Contestant] = {}
        for name, speculative in (("official", False), ("official, MTP", True)):
            if official.can_run(model) and speculative <= mtp:
                engine = official.OfficialEngine(model, mtp=speculative, num_threads=num_threads)
                stack.callback(engine.close)
                contestants[name] = partial(_official_speed, engine, prompts, max_new_tokens)
        yield contestants


def _official_speed(
    engine: official.OfficialEngine, prompts: Sequence[str], max_new_tokens: int, index: int
) -> float:
    return engine.generate(prompts[index], max_new_tokens).tokens_per_s


def median_tokens_per_s(runs: Sequence[Run]) -> float:
    """The middle of the runs' speeds."""
    return median(run.tokens_per_s for run in runs)
