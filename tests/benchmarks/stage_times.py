"""Milliseconds per call of every stage, and how many decode calls each is worth."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from runtime_py.backends.litert import LiteRTBackend
from tests.benchmarks.graph_clock import GraphClock
from tests.benchmarks.inputs import RECIPES, Graphs, Work, num_threads
from tests.benchmarks.record import Raw, Result, alternate, command, ratio

POSITION = 100  # of the first token; the graphs attend the whole buffer wherever they are
VERIFY_WIDTHS = (2, 4, 8)
MIN_SAMPLE_S = 0.05  # a sample repeats its call for at least so long

Call = Callable[[], object]


def measure(work: Work, num_repeats: int) -> Result:
    """Time embedding, prefill, decode, verify and draft for every recipe."""
    raw: Raw = {}
    ratios: dict[str, float] = {}
    threads = {"tiny": 1, "stack": num_threads()}
    models = {
        "tiny": {recipe: work.tiny_bundle(recipe) for recipe in RECIPES},
        "stack": {recipe: work.lowered(work.stack(), Graphs(recipe=recipe)) for recipe in RECIPES},
    }
    for name, folders in models.items():
        backends = {
            recipe: LiteRTBackend(
                folder / "model.litertlm",
                num_threads=threads[name],
                cache_dir=work.weight_caches,
            )
            for recipe, folder in folders.items()
        }
        found = _time(name, backends, num_repeats)
        for backend in backends.values():
            backend.close()
        raw |= found
        ratios |= _ratios(name, found)
    settings = {
        "threads": threads,
        "stack": "6 layers of E2B's widths, 3 of them shared, vocabulary 8192, 2048 KV rows",
        "position": POSITION,
        "graph": "inside LiteRT's run call; call: with masks, embeddings and copies around it",
    }
    return Result(settings=settings, raw=raw, ratios=ratios)


def _time(name: str, backends: dict[str, LiteRTBackend], num_repeats: int) -> Raw:
    calls: dict[str, Callable[[], float]] = {}
    graph_ms: Raw = {}
    for recipe, backend in backends.items():
        clock = GraphClock(backend)
        for stage, call in _stages(backend).items():
            key = f"{name} {recipe} {stage}"
            graph_ms[f"{key}, graph ms"] = []
            calls[f"{key}, call ms"] = partial(_sample, call, clock, graph_ms[f"{key}, graph ms"])
    raw = alternate(calls, num_repeats)
    return raw | {key: values[-num_repeats:] for key, values in graph_ms.items()}


def _sample(call: Call, clock: GraphClock, graph_ms: list[float]) -> float:
    """Milliseconds of one call; adds those inside the graphs to `graph_ms`."""
    clock.reset()
    num_calls = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MIN_SAMPLE_S:
        call()
        num_calls += 1
    graph_ms.append(1000 * clock.seconds / num_calls)
    return 1000 * elapsed / num_calls


def _stages(backend: LiteRTBackend) -> dict[str, Call]:
    decode = backend._verify[1]
    lookups = [(lookup, row[0].copy()) for lookup, row in decode._lookups]
    stages: dict[str, Call] = {"embed": lambda: [lookup.into(5, row) for lookup, row in lookups]}
    for width, step in backend._prefill.items():
        stages[f"prefill {width}"] = partial(step.run, _tokens(width), POSITION)
    for width, step in backend._verify.items():
        stage = "decode" if width == 1 else f"verify {width}"
        stages[stage] = partial(step.run, _tokens(width), POSITION)
    if backend.has_drafter:
        hidden = np.ones(backend.hidden_size, np.float32)
        stages["draft"] = partial(backend.draft, 5, hidden, POSITION)
    return stages


def _tokens(count: int) -> list[int]:
    return [5 + index for index in range(count)]


def _ratios(name: str, raw: Raw) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for recipe in RECIPES:
        times = {
            key.removeprefix(f"{name} {recipe} ").removesuffix(", call ms"): values
            for key, values in raw.items()
            if key.startswith(f"{name} {recipe} ") and key.endswith(", call ms")
        }
        for stage in times:
            if stage != "decode":
                ratios[f"{name} {recipe}: {stage} / decode"] = ratio(times, stage, "decode")
        for width in VERIFY_WIDTHS:
            times["round"] = [
                verify + (width - 1) * draft
                for verify, draft in zip(times[f"verify {width}"], times["draft"], strict=True)
            ]
            key = f"{name} {recipe}: tokens a round of K = {width - 1} must emit to gain"
            ratios[key] = ratio(times, "round", "decode")
    for recipe in RECIPES[1:]:
        keys = (f"{name} {recipe} decode, call ms", f"{name} float32 decode, call ms")
        ratios[f"{name}: decode {recipe} / float32"] = ratio(raw, *keys)
    return ratios


main = command("stage_times", measure)

if __name__ == "__main__":
    main()
