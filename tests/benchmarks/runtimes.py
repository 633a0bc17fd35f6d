"""LiteRT and ExecuTorch on the same weights: time of every call, file, memory, long contexts."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from runtime_py.backends import Backend
from tests.benchmarks.backends import open_backend
from tests.benchmarks.inputs import Graphs, Work, num_threads
from tests.benchmarks.record import Raw, Result, alternate, command, ratio
from tests.benchmarks.resident import resident

STACK_LAYERS = 4
ROUTES = {"LiteRT": "ours", "ExecuTorch": "executorch"}
RECIPES = {
    "LiteRT": ("float32", "int8", "int4"),
    "ExecuTorch": ("float32", "int8", "int4", "int4-groups"),
}
PAIRS = (  # (one, the one it is compared with)
    *((f"ExecuTorch {recipe}", f"LiteRT {recipe}") for recipe in RECIPES["LiteRT"]),
    ("ExecuTorch int4-groups", "LiteRT int4"),
    ("LiteRT int4", "LiteRT int8"),
    ("ExecuTorch int4", "ExecuTorch int8"),
    ("ExecuTorch int4-groups", "ExecuTorch int8"),
)
POSITION = 100  # KV rows before the first token of a call
MIN_SAMPLE_S = 0.2  # a sample repeats its call for at least so long
DECODE, STAGES = "decode", ("verify 2", "verify 4", "verify 8", "draft", "prefill 128")
CONTEXTS = (2048, 32768)
CONTEXT_CONTESTANTS = ("LiteRT int8", "ExecuTorch int8", "ExecuTorch int4")
NUM_DECODED = 100  # tokens of a sample, at the positions 1 to 100

Call = Callable[[], object]


@dataclass(frozen=True)
class Contestant:
    """One runtime with one recipe: a model file, and what its runtime adds to it."""

    name: str
    model: Path

    @property
    def weight_caches(self) -> Path:
        return self.model.with_name("weight_caches")

    def open(self) -> Backend:
        return open_backend(self.model, num_threads(), self.weight_caches)

    @cached_property
    def sizes_mb(self) -> dict[str, float]:
        """Of the weights in the recipe's bits, and of the files once the model was loaded."""
        weight_bytes = int(self.model.with_name("weight_bytes").read_text())
        cached = sum(path.stat().st_size for path in self.weight_caches.glob("*"))
        return {
            "weights": weight_bytes / 1e6,
            "model file": self.model.stat().st_size / 1e6,
            "weight cache": cached / 1e6,
        }


def measure(work: Work, num_repeats: int) -> Result:
    """Time LiteRT's and ExecuTorch's calls, weigh their files and their memory."""
    contestants = {one.name: one for one in _contestants(work, CONTEXTS[0])}
    times = _call_times(contestants, num_repeats)
    contexts = _context_times(work, contestants, num_repeats)
    memory = _memory(contestants, num_repeats)
    settings = {
        "threads": num_threads(),
        "stack": f"{STACK_LAYERS} layers of E2B's widths (hidden 1536, intermediate 6144; 2 of "
        "them share KV and have 12288), vocabulary 8192, with a drafter, "
        f"{CONTEXTS[0]} KV rows; every model is lowered from this one checkpoint",
        "calls": f"of the Backend, embeddings and copies included, at position {POSITION}; "
        "prefill at position 0",
        "threads of ExecuTorch": "one pool per process, shared by its models",
        "contexts": f"ms per decode call at the positions 1 to {NUM_DECODED}",
        "weights": "what they take in the recipe's bits, without scales, the tied embedding once",
        "weight cache": "LiteRT keeps what XNNPACK repacked in files that it maps; they are "
        "written at the first load, before memory is measured. ExecuTorch repacks at every load",
        "memory": "RssAnon and RssFile of a process that decodes, verifies 8 and drafts, less "
        "those after the import of its backend",
    }
    sizes = {
        f"{name}: {what} MB": round(size, 1)
        for name, one in contestants.items()
        for what, size in one.sizes_mb.items()
    }
    ratios = _time_ratios(times) | _context_ratios(contexts) | _size_ratios(contestants, memory)
    return Result(settings=settings, raw=times | contexts | memory, ratios=ratios, found=sizes)


def _contestants(work: Work, cache_length: int) -> Iterator[Contestant]:
    stack = work.stack(STACK_LAYERS)
    for runtime, recipes in RECIPES.items():
        for recipe in recipes:
            name = f"{runtime} {recipe}"
            if cache_length == CONTEXTS[0] or name in CONTEXT_CONTESTANTS:
                graphs = Graphs(recipe=recipe, route=ROUTES[runtime], cache_length=cache_length)
                yield Contestant(name, work.model(stack, graphs))


def _call_times(contestants: Mapping[str, Contestant], num_repeats: int) -> Raw:
    """Every call of every contestant in turn, all in this process."""
    backends = {name: one.open() for name, one in contestants.items()}
    calls: dict[str, Callable[[], float]] = {}
    for stage in ("prefill 128", DECODE, *STAGES[:-1]):  # the first fills the rows the others read
        for name, backend in backends.items():
            calls[f"{name}, {stage}: ms"] = partial(_sample, _stage(backend, stage))
    raw = alternate(calls, num_repeats)
    for backend in backends.values():
        backend.close()
    return raw


def _stage(backend: Backend, stage: str) -> Call:
    if stage == "draft":
        hidden = np.ones(backend.hidden_size, np.float32)
        return partial(backend.draft, 5, hidden, POSITION)
    if stage == DECODE:
        return partial(backend.verify, [5], POSITION)
    kind, width = stage.split()
    token_ids = [5 + index for index in range(int(width))]
    if kind == "prefill":
        return partial(backend.prefill, token_ids, 0)
    return partial(backend.verify, token_ids, POSITION)


def _sample(call: Call) -> float:
    """Milliseconds of one call."""
    num_calls = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MIN_SAMPLE_S:
        call()
        num_calls += 1
    return 1000 * elapsed / num_calls


def _context_times(work: Work, contestants: Mapping[str, Contestant], num_repeats: int) -> Raw:
    """The same first tokens in bundles for short and for long contexts."""
    longer = {one.name: one for one in _contestants(work, CONTEXTS[1])}
    backends = {
        _context_key(name, rows): one.open()
        for name in CONTEXT_CONTESTANTS
        for rows, one in zip(CONTEXTS, (contestants[name], longer[name]), strict=True)
    }
    raw = alternate({key: partial(_decode, one) for key, one in backends.items()}, num_repeats)
    for backend in backends.values():
        backend.close()
    return raw


def _context_key(name: str, rows: int) -> str:
    return f"{name}, {rows} rows: ms per token of the first {NUM_DECODED}"


def _decode(backend: Backend) -> float:
    backend.verify([5], 0)
    start = time.perf_counter()
    for position in range(1, 1 + NUM_DECODED):
        backend.verify([5], position)
    return 1000 * (time.perf_counter() - start) / NUM_DECODED


def _memory(contestants: Mapping[str, Contestant], num_repeats: int) -> Raw:
    raw: Raw = {}
    for _ in range(num_repeats):
        for name, one in contestants.items():
            found = resident(one.model, num_threads(), one.weight_caches)
            raw.setdefault(f"{name}: anonymous MB", []).append(found.anonymous)
            raw.setdefault(f"{name}: mapped MB", []).append(found.mapped)
            raw.setdefault(f"{name}: resident MB", []).append(found.total)
    return raw


def _time_ratios(raw: Raw) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for runtime, recipes in RECIPES.items():
        for recipe in recipes:
            name = f"{runtime} {recipe}"
            for stage in STAGES:
                keys = (f"{name}, {stage}: ms", f"{name}, {DECODE}: ms")
                ratios[f"{name}: {stage} / {DECODE}"] = ratio(raw, *keys)
    for above, below in PAIRS:
        for stage in (DECODE, *STAGES):
            keys = (f"{above}, {stage}: ms", f"{below}, {stage}: ms")
            ratios[f"{above} / {below}: {stage}"] = ratio(raw, *keys)
    return ratios


def _context_ratios(raw: Raw) -> dict[str, float]:
    short, long = CONTEXTS
    return {
        f"{name}: decode, {long} / {short} rows": ratio(
            raw, _context_key(name, long), _context_key(name, short)
        )
        for name in CONTEXT_CONTESTANTS
    }


def _size_ratios(contestants: Mapping[str, Contestant], memory: Raw) -> dict[str, float]:
    ratios: dict[str, float] = {}
    kinds = ("anonymous MB", "resident MB")
    for name, one in contestants.items():
        weights = one.sizes_mb["weights"]
        ratios[f"{name}: model file / weights"] = one.sizes_mb["model file"] / weights
        for kind in kinds:
            values = memory[f"{name}: {kind}"]
            against = {"memory": values, "weights": [weights] * len(values)}
            ratios[f"{name}: {kind} / weights"] = ratio(against, "memory", "weights")
    for above, below in PAIRS:
        files = [contestants[name].sizes_mb["model file"] for name in (above, below)]
        ratios[f"{above} / {below}: model file"] = files[0] / files[1]
        for kind in kinds:
            keys = (f"{above}: {kind}", f"{below}: {kind}")
            ratios[f"{above} / {below}: {kind}"] = ratio(memory, *keys)
    return ratios


main = command("runtimes", measure)

if __name__ == "__main__":
    main()
