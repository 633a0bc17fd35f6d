"""How much of a generation is spent outside the graphs, and on which side of the backend."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from runtime_py.bench.measure import TimedBackend
from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session, Stops
from tests.benchmarks.backends import open_backend
from tests.benchmarks.candidates import ROUTES, STACK_LAYERS, TINY_ROWS
from tests.benchmarks.graph_clock import GraphClock
from tests.benchmarks.inputs import TINY, Graphs, Work, num_threads
from tests.benchmarks.record import Raw, Result, alternate, command

NUM_TOKENS = 64
PROMPT = list(range(5, 25))
SAMPLINGS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.8, top_k=64, top_p=0.95, seed=7),
}
DRAFT_LENGTHS = (0, 3)
FULL_VOCAB = 262144


@dataclass
class Loaded:
    """A model whose every second is accounted for."""

    path: Path
    num_threads: int
    weight_caches: Path

    def __post_init__(self) -> None:
        backend = open_backend(self.path, self.num_threads, self.weight_caches)
        self.clock = GraphClock(backend)
        self.backend = TimedBackend(backend)

    def generate(self, sampling: SamplingParams, draft_length: int) -> "Shares":
        session = Session(self.backend, self.backend.cache_length)
        self.clock.reset()
        self.backend.reset()
        start = time.perf_counter()
        steps = list(
            session.generate(PROMPT, sampling, Stops(max_new_tokens=NUM_TOKENS), draft_length)
        )
        total_s = time.perf_counter() - start
        return Shares(total_s, self.backend.total_s, self.clock.seconds, len(steps))


@dataclass(frozen=True)
class Shares:
    """Seconds of one generation, each within the one before."""

    total_s: float
    backend_s: float
    graph_s: float
    num_rounds: int


def measure(work: Work, num_repeats: int) -> Result:
    """Time generations against the native run calls in them."""
    raw: Raw = {}
    models: dict[str, Callable[[], Path]] = {}
    for runtime, route in ROUTES.items():
        graphs = Graphs(recipe="int8", route=route)
        small = replace(graphs, cache_length=TINY_ROWS)
        models[f"tiny int8, {runtime}"] = partial(work.model, TINY, small)
        models[f"stack int8, {runtime}"] = partial(work.model, work.stack(STACK_LAYERS), graphs)
    models["stack int4, full vocabulary, LiteRT"] = partial(
        work.model, work.stack(STACK_LAYERS, FULL_VOCAB), Graphs(recipe="int4")
    )
    threads = {name: 1 if name.startswith("tiny") else num_threads() for name in models}
    for name, model in models.items():
        loaded = Loaded(model(), threads[name], work.weight_caches)
        raw |= _time(name, loaded, num_repeats)
        loaded.backend.close()
    settings = {
        "threads": threads,
        "stack": "4 layers of E2B's widths, 2 of them share KV, vocabulary 8192 or 262144, "
        "2048 KV rows; the whole E2B has 35 layers, so its share outside is smaller",
        "tokens": NUM_TOKENS,
        "outside": "1 - seconds in the runtime's run calls / seconds of the generation, prefill "
        "included; in the backend: masks, embeddings, copies; in the loop: choosing, accepting",
    }
    return Result(settings=settings, raw=raw, ratios={})


def _time(name: str, loaded: Loaded, num_repeats: int) -> Raw:
    shares: dict[str, list[Shares]] = {}
    calls: dict[str, Callable[[], float]] = {}
    for chosen, sampling in SAMPLINGS.items():
        for length in DRAFT_LENGTHS:
            key = f"{name}, {chosen}, K = {length}"
            shares[key] = []
            calls[key] = partial(_sample, loaded, sampling, length, shares[key])
    alternate(calls, num_repeats)
    raw: Raw = {}
    for key, runs in shares.items():
        kept = runs[-num_repeats:]
        raw[f"{key}: outside the graphs, %"] = [
            100 * (1 - run.graph_s / run.total_s) for run in kept
        ]
        raw[f"{key}: in the backend, %"] = [
            100 * (run.backend_s - run.graph_s) / run.total_s for run in kept
        ]
        raw[f"{key}: in the loop, %"] = [
            100 * (run.total_s - run.backend_s) / run.total_s for run in kept
        ]
        raw[f"{key}: outside the graphs, ms per round"] = [
            1000 * (run.total_s - run.graph_s) / run.num_rounds for run in kept
        ]
        raw[f"{key}: ms per round"] = [1000 * run.total_s / run.num_rounds for run in kept]
    return raw


def _sample(
    loaded: Loaded, sampling: SamplingParams, draft_length: int, runs: list[Shares]
) -> float:
    runs.append(loaded.generate(sampling, draft_length))
    return runs[-1].total_s


main = command("loop_overhead", measure)

if __name__ == "__main__":
    main()
