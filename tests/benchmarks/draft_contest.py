"""Plain decoding, every fixed draft length and `auto`, in turns, on one loaded bundle.

Heats find the best fixed length, where the drafter may be right; the finals alone are judged. So
the best is not the one that was luckiest when it was compared, and few have to take many turns.
"""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from runtime_py.backends import Backend, FloatArray, SessionOptions
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.decoding.policy import DraftLength, FixedDraftLength, Outcome, Round
from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session, Stops
from runtime_py.draft_length.measure import auto_draft_length, remember
from tests.benchmarks.inputs import Work
from tests.benchmarks.record import Raw, Result, ratio

LEAST_OF_PLAIN = 0.97  # with a drafter that is always wrong
LEAST_OF_BEST = 0.95  # of the best fixed draft length, 0 included
RUNTIME_NAMES: Mapping[str, RuntimeName] = {
    "LiteRT": "litert",
    "ExecuTorch": "executorch",
    "ONNX": "onnx",
}
PLAIN, AUTO = "plain", "auto"

MakePolicy = Callable[[], DraftLength]


def fixed(draft_length: int) -> str:
    """The name of the candidate."""
    return f"K = {draft_length}" if draft_length else PLAIN


class Watched:
    """A policy whose decisions are kept."""

    def __init__(self, policy: DraftLength) -> None:
        self._policy = policy
        self.rounds: list[Round] = []

    def next_round(self) -> Round:
        decided = self._policy.next_round()
        self.rounds.append(decided)
        return decided

    def observe(self, outcome: Outcome) -> None:
        self._policy.observe(outcome)


@dataclass(frozen=True)
class Generation:
    """What one candidate made of one prompt, timed from its first token on."""

    token_ids: list[int]
    num_timed: int
    seconds: float
    rounds: Counter[str]  # how often each was decided


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What takes turns.

    Attributes:
        name: of bundle and drafter, as it stands in the results.
        turn: tokens that each makes until the next one goes on: the shorter, the more alike is the
            machine for all. Between them the others write to the same KV rows.
        recall: before a turn, and not timed, write those rows anew. Needless where the text is a
            played one, which rows do not decide.
        play: told which prompt comes next, before its generations.
        always_wrong: the drafter; then auto is held to plain decoding, else to the best length.
    """

    name: str
    backend: Backend
    prompts: Sequence[list[int]]
    num_tokens: int  # after each prompt
    policies: Mapping[str, MakePolicy]
    turn: int
    recall: bool = True
    play: Callable[[int], None] = lambda _: None
    always_wrong: bool = False


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often all take a turn at each prompt, besides one that warms up."""

    heats: int
    finals: int


@dataclass
class Found:
    """What came out, of one contest or of several."""

    raw: Raw = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        self.raw |= other.raw
        self.ratios |= other.ratios
        self.found |= other.found
        self.misses += other.misses

    def result(self, settings: Mapping[str, Any]) -> Result:
        return Result(
            settings=settings,
            raw=self.raw,
            ratios=self.ratios,
            found=self.found,
            misses=self.misses,
        )


def empty_user_cache(work: Work) -> None:
    """Give the product one of the benchmarks' own: no costs and no packed weights of another day.

    How fast a file of packed weights is read depends on the pages that it happened to get.
    """
    folder = work.folder / "user_cache"
    os.environ["XDG_CACHE_HOME"] = str(folder)
    shutil.rmtree(folder, ignore_errors=True)


def policies(
    bundle: Bundle, runtime: RuntimeName, backend: Backend, options: SessionOptions, fixed_at: Any
) -> dict[str, MakePolicy]:
    """By candidate, what decides in a new generation; `auto` as the command line has it.

    Its costs are measured by the first call and read from the cache by all others.
    """
    makers: dict[str, MakePolicy] = {
        fixed(length): partial(FixedDraftLength, length) for length in (0, *fixed_at)
    }
    auto = partial(auto_draft_length, bundle, runtime, backend, options)
    auto()  # now, not between two candidates
    return makers | {AUTO: auto}


def hold(contest: Contest, repeats: Repeats) -> Found:
    """Let all take turns at each prompt, in an order drawn anew, and the finalists again."""
    everyone = [PLAIN, AUTO] if contest.always_wrong else list(contest.policies)
    heats = _Race() if contest.always_wrong else _race(contest, everyone, repeats.heats)
    best = max(set(heats.speeds) - {AUTO}, key=heats.median_speed, default=PLAIN)
    finalists = [name for name in everyone if name in {PLAIN, best, AUTO}]
    finals = _race(contest, finalists, repeats.finals)
    found = _judge(contest, finals, best)
    found.raw |= {
        f"{contest.name}, heats, {who}: tokens/s": values for who, values in heats.speeds.items()
    }
    if others := heats.others | finals.others:
        who = ", ".join(sorted(others))
        found.misses.append(f"{contest.name}: {who}: another text than plain decoding's")
    return found


@dataclass
class _Race:
    """What came of the turns."""

    speeds: Raw = field(default_factory=dict)  # tokens/s of each repeat, by candidate
    rounds: Counter[str] = field(default_factory=Counter)  # of auto
    others: set[str] = field(default_factory=set)  # had another text than plain decoding

    def median_speed(self, name: str) -> float:
        return median(self.speeds[name])


def _race(contest: Contest, order: Sequence[str], num_repeats: int) -> _Race:
    shuffle = random.Random(0)
    race = _Race({name: [] for name in order})
    for repeat in range(num_repeats + 1):
        runs: dict[str, list[Generation]] = {name: [] for name in order}
        for index, prompt in enumerate(contest.prompts):
            contest.play(index)
            policies = {name: contest.policies[name]() for name in order}
            running = {
                name: _Generating(_Kept(contest.backend), prompt, policy, contest.num_tokens)
                for name, policy in policies.items()
            }
            _take_turns(contest, running, shuffle)
            for name, run in running.items():
                runs[name].append(run.made())
        race.others |= {name for name in order if _text(runs[name]) != _text(runs[PLAIN])}
        if repeat:
            for name, made in runs.items():
                race.speeds[name].append(_tokens_per_s(made))
            race.rounds.update(sum((made.rounds for made in runs[AUTO]), Counter()))
    return race


def _take_turns(
    contest: Contest, running: Mapping[str, "_Generating"], shuffle: random.Random
) -> None:
    """To the end of one prompt's generations."""
    waiting, due = list(running), 0
    while waiting:
        due += contest.turn
        for name in shuffle.sample(waiting, len(waiting)):
            if contest.recall:
                running[name].write_anew(contest.turn)
            if not running[name].go_on(due):
                waiting.remove(name)


def generate(
    backend: Backend, prompt: Sequence[int], policy: DraftLength, num_tokens: int
) -> Generation:
    """All at once, by one candidate."""
    running = _Generating(backend, prompt, policy, num_tokens)
    running.go_on(num_tokens)
    return running.made()


class _Kept:
    """A backend whose hidden states outlast the calls of others.

    Each session has one of its own: sessions over one backend cannot take turns within an answer,
    and rows are written anew here.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        logits, hidden = self._backend.verify(token_ids, position)
        return logits, hidden.copy()


class _Generating:
    """From a fresh sequence; stop tokens are ignored."""

    def __init__(
        self, backend: Backend, prompt: Sequence[int], policy: DraftLength, num_tokens: int
    ) -> None:
        self._policy, self._watched = policy, Watched(policy)
        self._backend = backend
        self._session = Session(backend, backend.cache_length)
        stops = Stops(max_new_tokens=num_tokens)
        self._steps = self._session.generate(prompt, SamplingParams(), stops, self._watched)
        self._token_ids: list[int] = []
        self._seconds = 0.0

    def write_anew(self, turn: int) -> None:
        """The KV rows that others may have written to since, who began a turn behind at most."""
        end = self._session.kv_length
        begin = max(end - turn - self._backend.verify_widths[-1], self._backend.resumable_from)
        if begin < end:
            self._backend.prefill(self._session.committed[begin:], begin)

    def go_on(self, num_tokens: int) -> bool:
        """Until there are so many, or to the end: may there be more to come?"""
        if not self._token_ids:  # what is timed begins after it
            self._token_ids += next(self._steps).token_ids
        start = time.perf_counter()
        while len(self._token_ids) < num_tokens:
            step = next(self._steps, None)
            if step is None:
                break
            self._token_ids += step.token_ids
        self._seconds += time.perf_counter() - start
        return len(self._token_ids) >= num_tokens

    def made(self) -> Generation:
        remember(self._policy)
        kinds = Counter(
            f"{decided.num_drafts}" if decided.verified else f"{decided.num_drafts} compared"
            for decided in self._watched.rounds[1:]
        )
        return Generation(self._token_ids, len(self._token_ids) - 1, self._seconds, kinds)


def _text(runs: Sequence[Generation]) -> list[list[int]]:
    return [run.token_ids for run in runs]


def _tokens_per_s(runs: Iterable[Generation]) -> float:
    made = list(runs)
    return sum(run.num_timed for run in made) / sum(run.seconds for run in made)


def _judge(contest: Contest, finals: _Race, best: str) -> Found:
    name, speeds = contest.name, finals.speeds
    found = Found(raw={f"{name}, {who}: tokens/s": values for who, values in speeds.items()})
    of_plain, of_best = ratio(speeds, AUTO, PLAIN), ratio(speeds, AUTO, best)
    found.ratios = {f"{name}: auto / plain": of_plain}
    found.found = {f"{name}: rounds of auto, by drafts": dict(sorted(finals.rounds.items()))}
    least, reached, what = LEAST_OF_PLAIN, of_plain, PLAIN
    if not contest.always_wrong:
        found.ratios |= {f"{name}: auto / best fixed": of_best}
        found.found |= {f"{name}: best fixed": best}
        least, reached, what = LEAST_OF_BEST, of_best, f"the best fixed, {best}"
    if reached < least:
        found.misses.append(f"{name}: auto is {reached:.3f} of {what}; at least {least} is needed")
    return found
