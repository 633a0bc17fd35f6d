"""What `--draft-length auto` costs or saves a user who generates once, with nothing remembered.

The tiny model, each runtime: load, measure where there is something to measure, and 160 tokens, in
turns with plain decoding. `never_slower` begins with what was learnt; this begins without.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from runtime_py.backends import SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.policy import FixedDraftLength
from runtime_py.decoding.sampling import GREEDY
from runtime_py.decoding.session import Session, Stops
from runtime_py.device.caches import user_cache
from runtime_py.draft_length.measure import auto_draft_length
from tests.benchmarks.draft_contest import RUNTIME_NAMES, empty_user_cache
from tests.benchmarks.inputs import Work
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

NUM_TOKENS = 160
RECIPE = "int8"
OPTIONS = SessionOptions(1)
SETTINGS = {
    "recipe": RECIPE,
    "tokens": NUM_TOKENS,
    "threads": 1,
    "load": "reading the bundle and, for auto, measuring; then prompt and tokens",
    "user cache": "packed weights are kept, costs are deleted before each turn",
}


def seconds(folder: Path, runtime: str, index: int, auto: bool) -> tuple[float, float]:
    """Of one fresh load with a generation, and of what comes after the load itself."""
    shutil.rmtree(user_cache("costs"), ignore_errors=True)
    begun = time.perf_counter()
    bundle = Bundle.open(folder)
    name = RUNTIME_NAMES[runtime]
    with closing(load_backend(bundle, name, OPTIONS)) as backend:
        loaded = time.perf_counter()
        policy = FixedDraftLength(0)
        if auto:
            policy = auto_draft_length(bundle, name, backend, OPTIONS)
        prompts = bundle.reference().prompt_ids
        session = Session(backend, backend.cache_length)
        prompt = prompts[index % len(prompts)].tolist()
        for _ in session.generate(prompt, GREEDY, Stops(max_new_tokens=NUM_TOKENS), policy):
            pass
        ended = time.perf_counter()
    return ended - begun, ended - loaded


def measure(folder: Path, runtime: str, repeats: int) -> Raw:
    raw: Raw = {}
    for index in range(-1, repeats):
        for who, auto in (("plain", False), ("auto", True)):
            whole, after_load = seconds(folder, runtime, max(index, 0), auto)
            if index >= 0:
                raw.setdefault(f"{runtime}, {who}: s", []).append(whole)
                raw.setdefault(f"{runtime}, {who}, after the load: s", []).append(after_load)
    return raw


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "fresh_generate.json")
@click.option("--repeats", type=click.IntRange(6), default=16, show_default=True)
@click.option("--only", type=click.Choice(list(RUNTIME_NAMES)), multiple=True)
def main(output: Path, repeats: int, only: Sequence[str]) -> None:
    work = Work()
    runtimes = only or list(RUNTIME_NAMES)
    folders = {runtime: work.tiny_bundle(RECIPE, RUNTIME_NAMES[runtime]) for runtime in runtimes}
    empty_user_cache(work)
    machine, raw = describe_machine(), Raw()
    ratios: dict[str, float] = {}
    found: dict[str, tuple[float, float]] = {}
    for runtime, folder in folders.items():
        raw |= measure(folder, runtime, repeats)
        for what in ("", ", after the load"):
            pair = (f"{runtime}, plain{what}: s", f"{runtime}, auto{what}: s")
            name = f"{runtime}: speed of auto / plain{what}"
            ratios[name] = ratio(raw, *pair)
            found[f"{name}, 95 % interval"] = median_interval(neighbours(raw, *pair))
    finish(
        output,
        "fresh_generate",
        machine,
        Result(settings=SETTINGS, raw=raw, ratios=ratios, found=found),
    )


if __name__ == "__main__":
    main()
