"""Generate with one runtime of a bundle, in a process that does nothing else.

    python -m tests.benchmarks.generating BUNDLE RUNTIME THREADS WEIGHT_CACHE

prints what it kept in memory and how fast it was. WEIGHT_CACHE is the folder in which LiteRT keeps
the weights that it repacked, `memory` (kept there, as without room on the disk), or `none`: every
graph repacks them for itself. The other runtimes have no such cache and ignore it.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from runtime_py.backends.load import pick_runtime
from runtime_py.bench.measure import Run, TimedBackend, timed_run
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session
from tests.benchmarks.backends import import_backend

NUM_PROMPTS = 2
NUM_TOKENS = 32


def main() -> None:
    folder, runtime, threads, weight_cache = sys.argv[1:]
    bundle = Bundle.open(Path(folder))
    name = pick_runtime(bundle, runtime)
    model = bundle.model_path(name)
    open_model = import_backend(model)
    memory = {"imported": _resident_mb()}
    start = time.perf_counter()
    weight_caches = _weight_caches(weight_cache)
    with closing(TimedBackend(open_model(model, int(threads), weight_caches))) as backend:
        load_s = time.perf_counter() - start
        memory["loaded"] = _resident_mb()
        texts, speeds = {}, {}
        for length in sorted({0, bundle.manifest.draft_length if backend.has_drafter else 0}):
            runs, texts[length] = _generate(bundle, backend, length)
            speeds[f"K = {length}"] = _figures(runs)
            memory[f"generated, K = {length}"] = _resident_mb()
    print(  # noqa: T201
        json.dumps(
            {
                "load s": round(load_s, 2),
                "resident MB": memory,
                "speed": speeds,
                "speculative = plain": len(set(map(str, texts.values()))) == 1,
            }
        )
    )


def _resident_mb() -> dict[str, float]:
    """Anonymous memory, pages of files, and what XNNPACK packed into a file in memory."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    sizes = re.findall(r"^(RssAnon|RssFile|RssShmem):\s*(\d+) kB", text, re.M)
    return {name: round(int(kb) * 1024 / 1e6, 1) for name, kb in sizes}


def _weight_caches(weight_cache: str) -> Path:
    """Where they are; LiteRT's own way to do without is made to happen."""
    from runtime_py.backends.litert import backend as litert
    from runtime_py.backends.litert import weight_cache as litert_weight_cache

    modes: dict[str, Callable[..., Any]] = {
        "memory": lambda *_: litert_weight_cache.in_memory(),
        "none": lambda *_: None,
    }
    if weight_cache in modes:
        litert.weight_cache = modes[weight_cache]
    return Path(weight_cache)


def _generate(
    bundle: Bundle, backend: TimedBackend, draft_length: int
) -> tuple[list[Run], list[list[int]]]:
    session = Session(backend, bundle.manifest.model.context_length)
    runs, texts = [], []
    for prompt_ids in bundle.reference().prompt_ids[:NUM_PROMPTS]:
        prompt = prompt_ids.tolist()
        run = timed_run(
            session,
            backend,
            prompt,
            SamplingParams(),
            max_new_tokens=NUM_TOKENS,
            draft_length=draft_length,
        )
        runs.append(run)
        texts.append(session.committed[len(prompt) :][: NUM_TOKENS - 1])
    return runs, texts


def _figures(runs: list[Run]) -> dict[str, Any]:
    return {
        "tokens/s": round(median(run.tokens_per_s for run in runs), 3),
        "accepted per round": round(median(run.accepted_per_round for run in runs), 3),
        "prefill s": round(median(run.prefill_s for run in runs), 3),
        "stage ms": {stage: round(ms, 2) for stage, ms in runs[-1].stage_ms.items()},
        "outside the runtime": round(median(run.outside_share for run in runs), 4),
    }


if __name__ == "__main__":
    main()
