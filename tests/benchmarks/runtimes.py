"""All runtimes on the same weights: time of every call, file, memory, long contexts."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from runtime_py.backends import Backend
from tests.benchmarks.candidates import NAMES, PAIRS, STACK_ROWS, Candidate, stack, tiny
from tests.benchmarks.graph_clock import GraphClock
from tests.benchmarks.inputs import Work, num_threads
from tests.benchmarks.record import Raw, Result, alternate, command, ratio
from tests.benchmarks.resident import resident

POSITION = 100  # KV rows before the first token of a call
MIN_SAMPLE_S = 0.2  # a sample repeats its call for at least so long
DECODE, STAGES = "decode", ("verify 2", "verify 4", "verify 8", "draft", "prefill 128")
WIDTHS = (2, 4, 8)
MANY_ROWS = 32768
CONTEXT_CONTESTANTS = ("LiteRT int8", "ExecuTorch int8", "ONNX int8")
NUM_DECODED = 100  # tokens of a sample, at the positions 1 to 100

Call = Callable[[], object]
Candidates = Mapping[str, Candidate]


def measure(work: Work, num_repeats: int) -> Result:
    """Time every runtime's calls, weigh its files and its memory."""
    models = {"tiny": tiny(work), "stack": stack(work)}
    raw: Raw = {}
    ratios: dict[str, float] = {}
    for model, candidates in models.items():
        times = _call_times(candidates, num_repeats)
        raw |= {f"{model}, {key}": values for key, values in times.items()}
        ratios |= {f"{model}, {key}": value for key, value in _time_ratios(times).items()}
    contexts = _context_times(work, models["stack"], num_repeats)
    memory = _memory(models["stack"], num_repeats)
    ratios |= _context_ratios(contexts) | _size_ratios(models["stack"], memory)
    settings = {
        "threads": {"tiny": 1, "stack": num_threads()},
        "stack": "4 layers of E2B's widths (hidden 1536, intermediate 6144; 2 of them share KV and "
        f"have 12288), vocabulary 8192, with a drafter, {STACK_ROWS} KV rows; every model is "
        "lowered from this one checkpoint",
        "calls": f"of the Backend, embeddings and copies included, at position {POSITION}; "
        "prefill at position 0. outside: the part of it that is not in the runtime's own run call",
        "threads of ExecuTorch": "one pool per process, shared by its models",
        "round": "one verify call and the drafts it checks, in decode calls",
        "contexts": f"ms per decode call at the positions 1 to {NUM_DECODED}",
        "weights": "what they take in the recipe's bits, without scales, the tied embedding once",
        "weight cache": "LiteRT keeps what XNNPACK repacked in files that it maps; they are "
        "written at the first load, before memory is measured. The others repack at every load",
        "memory": "RssAnon and RssFile of a process that decodes, verifies 8 and drafts, less "
        "those after the import of its backend",
    }
    sizes = {
        f"{name}: {what} MB": round(size, 1)
        for name, one in models["stack"].items()
        for what, size in one.sizes_mb.items()
    }
    return Result(settings=settings, raw=raw | contexts | memory, ratios=ratios, found=sizes)


def _call_times(candidates: Candidates, num_repeats: int) -> Raw:
    """Every call of every candidate in turn, all in this process."""
    backends = {name: one.open() for name, one in candidates.items()}
    clocks = {name: GraphClock(backend) for name, backend in backends.items()}
    calls: dict[str, Callable[[], float]] = {}
    outside: Raw = {}
    for stage in ("prefill 128", DECODE, *STAGES[:-1]):  # the first fills the rows the others read
        for name, backend in backends.items():
            kept = outside[f"{name}, {stage}: outside, ms"] = []
            sample = partial(_sample, _stage(backend, stage), clocks[name], kept)
            calls[f"{name}, {stage}: ms"] = sample
    raw = alternate(calls, num_repeats)
    for backend in backends.values():
        backend.close()
    return raw | {key: values[-num_repeats:] for key, values in outside.items()}


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


def _sample(call: Call, clock: GraphClock, outside: list[float]) -> float:
    """Milliseconds of one call; adds those outside the graphs to `outside`."""
    clock.reset()
    num_calls = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MIN_SAMPLE_S:
        call()
        num_calls += 1
    outside.append(1000 * (elapsed - clock.seconds) / num_calls)
    return 1000 * elapsed / num_calls


def _context_times(work: Work, candidates: Candidates, num_repeats: int) -> Raw:
    """The same first tokens in bundles for short and for long contexts."""
    longer = stack(work, CONTEXT_CONTESTANTS, MANY_ROWS)
    backends = {
        _context_key(name, rows): one.open()
        for name in CONTEXT_CONTESTANTS
        for rows, one in ((STACK_ROWS, candidates[name]), (MANY_ROWS, longer[name]))
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


def _memory(candidates: Candidates, num_repeats: int) -> Raw:
    raw: Raw = {}
    for _ in range(num_repeats):
        for name, one in candidates.items():
            found = resident(one.model, one.num_threads, one.weight_caches)
            raw.setdefault(f"{name}: anonymous MB", []).append(found.anonymous)
            raw.setdefault(f"{name}: mapped MB", []).append(found.mapped)
            raw.setdefault(f"{name}: resident MB", []).append(found.total)
    return raw


def _time_ratios(raw: Raw) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for name in NAMES:
        times = {stage: raw[f"{name}, {stage}: ms"] for stage in (DECODE, *STAGES)}
        for width in WIDTHS:
            times[f"round of {width - 1} drafts"] = [
                verify + (width - 1) * draft
                for verify, draft in zip(times[f"verify {width}"], times["draft"], strict=True)
            ]
        for stage in set(times) - {DECODE}:
            ratios[f"{name}: {stage} / {DECODE}"] = ratio(times, stage, DECODE)
        keys = (f"{name}, {DECODE}: outside, ms", f"{name}, {DECODE}: ms")
        ratios[f"{name}: outside / {DECODE}"] = ratio(raw, *keys)
    for above, below in PAIRS:
        for stage in (DECODE, *STAGES):
            keys = (f"{above}, {stage}: ms", f"{below}, {stage}: ms")
            ratios[f"{above} / {below}: {stage}"] = ratio(raw, *keys)
    return dict(sorted(ratios.items()))


def _context_ratios(raw: Raw) -> dict[str, float]:
    return {
        f"{name}: decode, {MANY_ROWS} / {STACK_ROWS} rows": ratio(
            raw, _context_key(name, MANY_ROWS), _context_key(name, STACK_ROWS)
        )
        for name in CONTEXT_CONTESTANTS
    }


def _size_ratios(candidates: Candidates, memory: Raw) -> dict[str, float]:
    ratios: dict[str, float] = {}
    kinds = ("anonymous MB", "resident MB")
    for name, one in candidates.items():
        weights = one.sizes_mb["weights"]
        ratios[f"{name}: model file / weights"] = one.sizes_mb["model file"] / weights
        for kind in kinds:
            values = memory[f"{name}: {kind}"]
            against = {"memory": values, "weights": [weights] * len(values)}
            ratios[f"{name}: {kind} / weights"] = ratio(against, "memory", "weights")
    for above, below in PAIRS:
        files = [candidates[name].sizes_mb["model file"] for name in (above, below)]
        ratios[f"{above} / {below}: model file"] = files[0] / files[1]
        for kind in kinds:
            keys = (f"{above}: {kind}", f"{below}: {kind}")
            ratios[f"{above} / {below}: {kind}"] = ratio(memory, *keys)
    return ratios


main = command("runtimes", measure)

if __name__ == "__main__":
    main()
