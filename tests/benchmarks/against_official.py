"""Our runtime and the official one on the same .litertlm: plain, and with the drafter."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from runtime_py.backends.litert import LiteRTBackend
from runtime_py.bench import Run, TimedBackend, timed_run
from runtime_py.official import OfficialEngine
from runtime_py.sampling import SamplingLaw
from runtime_py.speculative import Session
from tests.benchmarks.inputs import Graphs, Work, num_threads, text_prompts
from tests.benchmarks.record import Raw, Result, alternate, command, ratio

OFFICIAL_DRAFT_LENGTH = 3  # its verify graph is 4 wide
DRAFT_LENGTHS = (0, 1, OFFICIAL_DRAFT_LENGTH)
BOS = 2


@dataclass(frozen=True, kw_only=True)
class Event:
    """What both run."""

    model: str
    num_threads: int
    num_tokens: int
    num_prompts: int  # the first whose continuation has no stop token


EVENTS = (
    Event(model="tiny int8", num_threads=1, num_tokens=128, num_prompts=8),
    Event(model="stack int8", num_threads=num_threads(), num_tokens=48, num_prompts=2),
)


@dataclass
class Contest:
    """Both runtimes, loaded with one file."""

    event: Event
    model: Path
    tokenizer: Tokenizer
    weight_caches: Path
    runs: dict[int, list[Run]] = field(default_factory=dict)  # ours, by draft length
    texts: dict[tuple[str, str], str] = field(default_factory=dict)  # (who, prompt) -> text

    def __post_init__(self) -> None:
        threads = self.event.num_threads
        self.backend = TimedBackend(
            LiteRTBackend(self.model, num_threads=threads, cache_dir=self.weight_caches)
        )
        self.session = Session(self.backend, self.backend.cache_length)
        self.official = {
            mtp: OfficialEngine(self.model, mtp=mtp, num_threads=threads) for mtp in (False, True)
        }
        fitting = filter(self._goes_on, text_prompts())
        self.prompts = list(islice(fitting, self.event.num_prompts))

    def _goes_on(self, prompt: str) -> bool:
        """The official engine ends at a stop token, ours is told not to: equal work only."""
        num_tokens = self.event.num_tokens
        return self.official[False].generate(prompt, num_tokens).num_tokens == num_tokens

    def calls(self) -> dict[str, Callable[[], float]]:
        """Tokens per second of one pass over all prompts."""
        plain, mtp, *others = (
            f"{self.event.model}, {who}: tokens/s"
            for who in ("official", "official MTP", *(f"ours K = {k}" for k in DRAFT_LENGTHS))
        )
        calls: dict[str, Callable[[], float]] = {
            plain: partial(self._run_official, False),
            mtp: partial(self._run_official, True),
        }
        for key, length in zip(others, DRAFT_LENGTHS, strict=True):
            calls[key] = partial(self._run_ours, length)
        return calls

    def _run_official(self, mtp: bool) -> float:
        num_tokens, seconds = 0, 0.0
        for prompt in self.prompts:
            run = self.official[mtp].generate(prompt, self.event.num_tokens)
            num_tokens += run.num_tokens
            seconds += run.num_tokens / run.tokens_per_s
            self.texts["official MTP" if mtp else "official", prompt] = run.text
        return num_tokens / seconds

    def _run_ours(self, draft_length: int) -> float:
        runs = []
        for prompt in self.prompts:
            prompt_ids = [BOS, *self.tokenizer.encode(prompt, add_special_tokens=False).ids]
            run = timed_run(
                self.session,
                self.backend,
                prompt_ids,
                SamplingLaw(),
                max_new_tokens=self.event.num_tokens,
                draft_length=draft_length,
            )
            runs.append(run)
            if draft_length == OFFICIAL_DRAFT_LENGTH:
                committed = self.session.committed[len(prompt_ids) :]
                self.texts["ours", prompt] = self.tokenizer.decode(committed)
        self.runs[draft_length] = runs
        return sum(run.num_tokens for run in runs) / sum(run.seconds for run in runs)

    def close(self) -> dict[str, object]:
        """End both; what was found besides the times."""
        name = self.event.model
        found: dict[str, object] = {
            f"{name}: prompts with the text of {other}": self._num_equal_texts(other)
            for other in ("official", "official MTP")
        }
        found[f"{name}: prompts"] = len(self.prompts)
        for length in DRAFT_LENGTHS[1:]:
            found[f"{name}: drafts accepted, ours K = {length}"] = self._acceptance(length)
        self.backend.close()
        self.official[False].close()
        found[f"{name}: drafts accepted, official (its log)"] = self.official[True].close()
        return found

    def _num_equal_texts(self, other: str) -> int:
        """Prompts whose text is the same as ours, as far as both go."""
        pairs = [(self.texts["ours", p], self.texts[other, p]) for p in self.prompts]
        return sum(a.startswith(b) or b.startswith(a) for a, b in pairs)

    def _acceptance(self, draft_length: int) -> float:
        """Accepted of all drafted tokens, over the last pass."""
        runs = self.runs[draft_length]
        drafted = sum(run.num_rounds for run in runs) * draft_length
        return round(sum(run.num_accepted for run in runs) / drafted, 4)


def measure(work: Work, num_repeats: int) -> Result:
    """Decode the same prompts with both runtimes, taking turns."""
    raw: Raw = {}
    ratios: dict[str, float] = {}
    found: dict[str, object] = {}
    folders = {
        "tiny int8": work.tiny_bundle("int8"),
        "stack int8": work.lowered(work.stack(), Graphs(recipe="int8")),
    }
    tokenizer = Tokenizer.from_file(str(work.stack() / "target" / "tokenizer.json"))
    for event in EVENTS:
        model = folders[event.model] / "model.litertlm"
        contest = Contest(event, model, tokenizer, work.weight_caches)
        times = alternate(contest.calls(), num_repeats)
        raw |= times
        ratios |= _ratios(event.model, times)
        found |= contest.close()
    settings = {
        "events": [asdict(event) for event in EVENTS],
        "timed": "decoding only: ours from the first target call after prefill, the official "
        "engine by its own benchmark clock; greedy",
        "stack": "random weights of E2B's widths, 6 layers: its drafter is right by chance only",
    }
    return Result(settings=settings, raw=raw, ratios=ratios, found=found)


def _ratios(name: str, raw: Raw) -> dict[str, float]:
    def key(who: str) -> str:
        return f"{name}, {who}: tokens/s"

    ours, fast = key("ours K = 0"), key(f"ours K = {OFFICIAL_DRAFT_LENGTH}")
    official, mtp = key("official"), key("official MTP")
    return {
        f"{name}: ours / official, plain": ratio(raw, ours, official),
        f"{name}: ours / official, drafter": ratio(raw, fast, mtp),
        f"{name}: drafter / plain, ours": ratio(raw, fast, ours),
        f"{name}: drafter / plain, ours K = 1": ratio(raw, key("ours K = 1"), ours),
        f"{name}: drafter / plain, official": ratio(raw, mtp, official),
    }


main = command("against_official", measure)

if __name__ == "__main__":
    main()
