"""Our runtime and the official one on the same .litertlm: plain, and with the drafter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from runtime_py.backends.litert import LiteRTBackend
from runtime_py.bench import Run, TimedBackend, timed_run
from runtime_py.sampling import SamplingLaw
from runtime_py.speculative import Session
from tests.benchmarks.inputs import Graphs, Work, num_threads, text_prompts
from tests.benchmarks.official_engine import OfficialEngine
from tests.benchmarks.record import Raw, Result, alternate, command, ratio

NUM_TOKENS = 128
NUM_PROMPTS = 8
OFFICIAL_DRAFT_LENGTH = 3  # its verify graph is 4 wide
DRAFT_LENGTHS = (0, 1, OFFICIAL_DRAFT_LENGTH)
BOS = 2


@dataclass
class Contest:
    """Both runtimes, loaded with one file."""

    name: str
    model: Path
    tokenizer: Tokenizer
    prompts: list[str]
    num_threads: int
    weight_caches: Path
    runs: dict[int, list[Run]] = field(default_factory=dict)  # ours, by draft length
    texts: dict[tuple[str, str], str] = field(default_factory=dict)  # (who, prompt) -> text

    def __post_init__(self) -> None:
        backend = LiteRTBackend(
            self.model, num_threads=self.num_threads, cache_dir=self.weight_caches
        )
        self.backend = TimedBackend(backend)
        self.session = Session(self.backend, self.backend.cache_length)
        self.official = {
            mtp: OfficialEngine(self.model, mtp=mtp, num_threads=self.num_threads)
            for mtp in (False, True)
        }
        # The official engine stops at a stop token, ours is told not to: equal work only.
        self.prompts = [
            prompt
            for prompt in self.prompts
            if self.official[False].generate(prompt, NUM_TOKENS).num_tokens == NUM_TOKENS
        ][:NUM_PROMPTS]

    def calls(self) -> dict[str, Callable[[], float]]:
        """Tokens per second of one pass over all prompts."""
        plain, mtp, *others = (
            f"{self.name}, {who}: tokens/s"
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
            run = self.official[mtp].generate(prompt, NUM_TOKENS)
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
                max_new_tokens=NUM_TOKENS,
                draft_length=draft_length,
            )
            runs.append(run)
            if draft_length == OFFICIAL_DRAFT_LENGTH:
                committed = self.session.committed[len(prompt_ids) :]
                self.texts["ours", prompt] = self.tokenizer.decode(committed)
        self.runs[draft_length] = runs
        return sum(run.num_tokens for run in runs) / sum(run.seconds for run in runs)

    def num_equal_texts(self, other: str) -> int:
        """Prompts whose text is the same as ours, as far as both go."""
        pairs = [(self.texts["ours", p], self.texts[other, p]) for p in self.prompts]
        return sum(a.startswith(b) or b.startswith(a) for a, b in pairs)

    def acceptance(self, draft_length: int) -> float:
        """Accepted of all drafted tokens, over the last pass."""
        runs = self.runs[draft_length]
        drafted = sum(run.num_rounds for run in runs) * draft_length
        return sum(run.num_accepted for run in runs) / drafted

    def close(self) -> float | None:
        """The official engine's own figure of its acceptance."""
        self.backend.close()
        self.official[False].close()
        return self.official[True].close()


def measure(work: Work, num_repeats: int) -> Result:
    """Decode the same prompts with both runtimes, taking turns."""
    raw: Raw = {}
    ratios: dict[str, float] = {}
    found: dict[str, object] = {}
    threads = {"tiny int8": 1, "stack int8": num_threads()}
    models = {
        "tiny int8": lambda: work.tiny_bundle("int8"),
        "stack int8": lambda: work.lowered(work.stack(), Graphs(recipe="int8")),
    }
    tokenizer = Tokenizer.from_file(str(work.stack() / "target" / "tokenizer.json"))
    for name, folder in models.items():
        model = folder() / "model.litertlm"
        contest = Contest(name, model, tokenizer, text_prompts(), threads[name], work.weight_caches)
        times = alternate(contest.calls(), num_repeats)
        raw |= times
        ratios |= _ratios(name, times)
        for other in ("official", "official MTP"):
            found[f"{name}: prompts with the text of {other}"] = (
                f"{contest.num_equal_texts(other)} of {len(contest.prompts)}"
            )
        for length in DRAFT_LENGTHS[1:]:
            found[f"{name}: drafts accepted, ours K = {length}"] = contest.acceptance(length)
        found[f"{name}: drafts accepted, official (its log)"] = contest.close()
    settings = {
        "threads": threads,
        "tokens": NUM_TOKENS,
        "prompts": f"at most {NUM_PROMPTS}, of those with no stop token in the first tokens",
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
