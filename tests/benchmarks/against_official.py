"""Our runtime and the official one on the same .litertlm: plain, and with the drafter."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click

from runtime_py.backends import SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bench.measure import Run, TimedBackend, timed_run
from runtime_py.bench.official import OfficialEngine
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session
from tests.benchmarks.draft_contest import AUTO, empty_user_cache, fixed, generate, policies
from tests.benchmarks.graph_clock import GraphClock
from tests.benchmarks.inputs import Work, num_threads
from tests.benchmarks.record import (
    RESULTS,
    Raw,
    Result,
    describe_machine,
    finish,
    median_interval,
    neighbours,
    ratio,
)

OFFICIAL_DRAFT_LENGTH = 3  # its verify graph is 4 wide
LIKE = fixed(OFFICIAL_DRAFT_LENGTH)  # ours, doing what the official one does
OURS = (fixed(0), fixed(1), LIKE, AUTO)
DRAFTING = (LIKE, AUTO)
MOST_OUTSIDE = 3.0  # percent, at E2B's shape
OFFICIAL = {"official": False, "official MTP": True}  # with its drafter?
LEAST = 6  # repeats that a 95 % interval takes
NUM_CLOCKED = 3  # passes
REST_S = 0.2  # before each: the threads of the one before, in another process, still spin
SETTINGS = {
    "timed": "decoding only: ours from the first token on, the official engine by its own clock; "
    "greedy",
    "order": f"all take turns at each prompt, in an order drawn anew; {REST_S} s of rest before "
    "each where there are several threads",
    "weights": "packed anew by both",
    "auto": "as gemma-run has it: costs measured once at load, then read from the cache, where "
    "each generation leaves what it learnt",
    "outside the graphs": "1 - seconds in LiteRT's run calls / seconds of the generation, prefill "
    "included; by passes of their own, for such a clock takes time, too",
    "stack": "random weights of E2B's widths, 6 layers: its drafter is right by chance only",
    "bounds": "ours at least as fast, plain and with the drafter, as far as the run can tell: the "
    "95 % interval of the median ratio reaches 1; outside the graphs at most "
    f"{MOST_OUTSIDE} % (but for the tiny model)",
}


@dataclass(frozen=True, kw_only=True)
class Event:
    """What both run."""

    model: str
    num_threads: int
    num_tokens: int
    num_prompts: int  # the first whose continuation has no stop token


@dataclass
class Contest:
    """Both runtimes, loaded with one file."""

    event: Event
    bundle: Bundle
    runs: dict[str, list[Run]] = field(default_factory=dict)  # ours, of the last clocked pass
    rounds: Counter[str] = field(default_factory=Counter)  # of auto, by drafts
    texts: dict[tuple[str, str], str] = field(default_factory=dict)  # (who, prompt) -> text

    def __post_init__(self) -> None:
        threads, bundle = self.event.num_threads, self.bundle
        model, options = bundle.model_path("litert"), SessionOptions(threads)
        self.backend = load_backend(bundle, "litert", options)
        self.policies = policies(
            bundle, "litert", self.backend, options, (1, OFFICIAL_DRAFT_LENGTH)
        )
        self.tokenizer = bundle.tokenizer()
        self.official = {
            mtp: OfficialEngine(model, mtp=mtp, num_threads=threads) for mtp in (False, True)
        }
        known = [ids.tolist() for ids in bundle.reference().prompt_ids]
        texts = {self.tokenizer.text_after_bos(ids): ids for ids in known}
        fitting = (text for text in texts if self._fits(text, texts[text]))
        self.prompts = {
            text: texts[text] for text in islice(fitting, self.event.num_prompts)
        }  # text after the start token -> tokens

    def _fits(self, prompt: str, prompt_ids: list[int]) -> bool:
        """Equal work only: the official engine is given text, and ends at a stop token."""
        if self.tokenizer.encode(prompt) != prompt_ids:
            return False
        num_tokens = self.event.num_tokens
        return self.official[False].generate(prompt, num_tokens).num_tokens == num_tokens

    def race(self, num_repeats: int) -> Raw:
        """Tokens per second over all prompts, by candidate; one repeat more, to warm up."""
        candidates = (*OFFICIAL, *OURS)
        raw: Raw = {self._key(who): [] for who in candidates}
        shuffle = random.Random(0)
        for repeat in range(num_repeats + 1):
            num_tokens: Counter[str] = Counter()
            seconds = dict.fromkeys(candidates, 0.0)
            for prompt in self.prompts:
                for who in shuffle.sample(candidates, len(candidates)):
                    if self.event.num_threads > 1:
                        time.sleep(REST_S)
                    num, taken_s = self._generate(who, prompt)
                    num_tokens[who] += num
                    seconds[who] += taken_s
            if repeat:
                for who in candidates:
                    raw[self._key(who)].append(num_tokens[who] / seconds[who])
        return raw

    def _key(self, who: str) -> str:
        name = who if who in OFFICIAL else f"ours {who}"
        return f"{self.event.model}, {name}: tokens/s"

    def _generate(self, who: str, prompt: str) -> tuple[int, float]:
        """Tokens, and the seconds that they took."""
        if who in OFFICIAL:
            run = self.official[OFFICIAL[who]].generate(prompt, self.event.num_tokens)
            self.texts[who, prompt] = run.text
            return run.num_tokens, run.num_tokens / run.tokens_per_s
        prompt_ids, policy = self.prompts[prompt], self.policies[who]()
        made = generate(self.backend, prompt_ids, policy, self.event.num_tokens)
        self.texts[who, prompt] = self.tokenizer.decode(made.token_ids)
        if who == AUTO:
            self.rounds.update(made.rounds)
        return made.num_timed, made.seconds

    def clock(self) -> Raw:
        """Percent of the time that ours passes outside the graphs, by candidate."""
        outside: Raw = {}
        options = SessionOptions(self.event.num_threads)
        with closing(load_backend(self.bundle, "litert", options)) as backend:
            clock, timed = GraphClock(backend), TimedBackend(backend)
            session = Session(timed, self.bundle.manifest.model.context_length)
            for name in NUM_CLOCKED * OURS:
                self.runs[name] = []
                clock.reset()
                for prompt_ids in self.prompts.values():
                    run = timed_run(
                        session,
                        timed,
                        prompt_ids,
                        SamplingParams(),
                        max_new_tokens=self.event.num_tokens,
                        draft_length=self.policies[name](),
                    )
                    self.runs[name].append(run)
                total_s = sum(run.seconds + run.prefill_s for run in self.runs[name])
                key = f"{self.event.model}, ours {name}: outside the graphs, %"
                outside.setdefault(key, []).append(100 * (1 - clock.seconds / total_s))
        return outside

    def close(self) -> dict[str, Any]:
        """End both; what was found besides the times."""
        name = self.event.model
        found: dict[str, Any] = {
            f"{name}: prompts with the text of {other}": self._num_equal_texts(other)
            for other in OFFICIAL
        }
        found[f"{name}: prompts"] = len(self.prompts)
        for who in (fixed(1), LIKE):
            found[f"{name}: drafts accepted, ours {who}"] = self._acceptance(who)
        found[f"{name}: rounds of auto, by drafts"] = dict(sorted(self.rounds.items()))
        self.backend.close()
        self.official[False].close()
        found[f"{name}: drafts accepted, official (its log)"] = self.official[True].close()
        return found

    def _num_equal_texts(self, other: str) -> int:
        """Prompts whose text is the same as ours, as far as both go."""
        pairs = [(self.texts[LIKE, p], self.texts[other, p]) for p in self.prompts]
        return sum(a.startswith(b) or b.startswith(a) for a, b in pairs)

    def _acceptance(self, who: str) -> float:
        """Accepted of all drafted tokens, over the last pass."""
        runs = self.runs[who]
        drafted = sum(run.num_rounds for run in runs) * int(who.removeprefix("K = "))
        return round(sum(run.num_accepted for run in runs) / drafted, 4)


def measure(events: Sequence[tuple[Event, Path]], num_repeats: int) -> Result:
    """Decode the same prompts with both runtimes, taking turns."""
    raw: Raw = {}
    ratios: dict[str, float] = {}
    found: dict[str, Any] = {}
    misses: list[str] = []
    for event, folder in events:
        contest = Contest(event, Bundle.open(folder))
        times = contest.race(num_repeats)
        outside = contest.clock()
        raw |= times | outside
        ratios |= _ratios(event.model, times)
        intervals = _intervals(event.model, times)
        found |= contest.close() | {f"{key}: 95 % interval": v for key, v in intervals.items()}
        misses += _misses(event.model, intervals, outside)
    settings = SETTINGS | {"events": [asdict(event) for event, _ in events]}
    return Result(settings=settings, raw=raw, ratios=ratios, found=found, misses=misses)


def _pairs(name: str) -> dict[str, tuple[str, str]]:
    """What is held against the official runtime: the keys of ours and of theirs."""
    peers = {fixed(0): ("plain", "official")} | {
        who: (f"drafter, {who}", "official MTP") for who in DRAFTING
    }
    return {
        f"{name}: ours / official, {what}": (
            f"{name}, ours {who}: tokens/s",
            f"{name}, {peer}: tokens/s",
        )
        for who, (what, peer) in peers.items()
    }


def _ratios(name: str, raw: Raw) -> dict[str, float]:
    def compared(above: str, below: str) -> float:
        return ratio(raw, f"{name}, {above}: tokens/s", f"{name}, {below}: tokens/s")

    return {
        **{key: ratio(raw, *pair) for key, pair in _pairs(name).items()},
        **{
            f"{name}: drafter / plain, ours {who}": compared(f"ours {who}", f"ours {fixed(0)}")
            for who in OURS[1:]
        },
        f"{name}: drafter / plain, official": compared("official MTP", "official"),
    }


def _intervals(name: str, raw: Raw) -> dict[str, tuple[float, float]]:
    return {key: median_interval(neighbours(raw, *pair)) for key, pair in _pairs(name).items()}


def _misses(name: str, intervals: dict[str, tuple[float, float]], outside: Raw) -> list[str]:
    slower = [
        f"{key} is at most {high:.3f}; at least 1 is needed"
        for key, (_, high) in intervals.items()
        if high < 1
    ]
    if name.startswith("tiny"):  # whose graphs take less than a millisecond
        return slower
    return slower + [
        f"{key[:-3]} {middle:.2f} %; at most {MOST_OUTSIDE} % is needed"
        for key, values in outside.items()
        if (middle := sorted(values)[len(values) // 2]) > MOST_OUTSIDE
    ]


@click.command(help=__doc__)
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS / "against_official.json"
)
@click.option("--repeats", type=click.IntRange(LEAST), default=9, show_default=True)
@click.option("--bundle", type=click.Path(path_type=Path), multiple=True, help="Ready made, too.")
@click.option("--no-own", is_flag=True, help="Nothing but --bundle.")
@click.option("--tokens", type=click.IntRange(2), default=48, show_default=True, help="Of --bundle")
def main(output: Path, repeats: int, bundle: Sequence[Path], no_own: bool, tokens: int) -> None:
    work = Work()
    threads = num_threads()
    events: list[tuple[Event, Path]] = []
    if not no_own:
        tiny = Event(model="tiny int8", num_threads=1, num_tokens=128, num_prompts=8)
        stack = Event(model="stack int8", num_threads=threads, num_tokens=48, num_prompts=2)
        events = [
            (tiny, work.tiny_bundle("int8")),
            (stack, work.stack_bundle(6, "int8", "litert")),
        ]
    for folder in bundle:
        manifest = Bundle.open(folder).manifest
        recipe = manifest.runtimes["litert"].recipe
        about = f"{manifest.model.num_layers} layers of width {manifest.model.hidden_size} {recipe}"
        event = Event(model=about, num_threads=threads, num_tokens=tokens, num_prompts=2)
        events.append((event, folder))
    empty_user_cache(work)
    machine = describe_machine()  # its load is that of before, exports left aside
    finish(output, "against_official", machine, measure(events, repeats))


if __name__ == "__main__":
    main()
