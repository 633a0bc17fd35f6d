"""Seconds and peak memory of an export: of gemma-export, and of the stock route beside ours."""

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from tests.benchmarks.inputs import (
    RECIPES,
    ROOT,
    Graphs,
    Work,
    python_command,
    route_options,
    tiny_options,
)
from tests.benchmarks.record import Raw, Result, command, ratio

STACK_LAYERS = 4
GRAPHS = Graphs(recipe="int8", verify_widths=(4,))
ROUTES = ("imports", "ours", "stock", "stock-light")
SAMPLE_S = 0.02  # between two looks at the memory


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    seconds: float
    peak_mb: float  # resident, with the pages of mapped files that are in memory
    peak_anonymous_mb: float  # resident and not backed by a file: what cannot be dropped
    stages: dict[str, float]  # seconds until the stage's line on stderr, from the line before


def watched(module: str, arguments: Sequence[object]) -> Cost:
    """Run `python -m module ...` and watch it.

    The peak is the kernel's own count. A child starts with its parent's, so this process must
    stay smaller than what it watches.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        python_command(module, arguments),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    anonymous = _Sampler(process.pid)
    anonymous.start()
    log: list[str] = []
    stages = _read_stages(process, start, log)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    anonymous.join()
    if process.returncode:
        raise RuntimeError(f"{module} failed:\n{''.join(log[-20:])}")
    return Cost(seconds, usage.ru_maxrss * 1024 / 1e6, anonymous.peak_mb, stages)


class _Sampler(threading.Thread):
    """Looks at a process's anonymous memory until it is gone."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self.peak_mb = 0.0

    def run(self) -> None:
        while True:
            try:
                found = re.search(r"^RssAnon:\s*(\d+) kB", self._status.read_text(), re.M)
            except (FileNotFoundError, ProcessLookupError):
                return
            if found is None:  # it has ended and waits to be collected
                return
            self.peak_mb = max(self.peak_mb, int(found[1]) * 1024 / 1e6)
            time.sleep(SAMPLE_S)


def _read_stages(
    process: "subprocess.Popen[str]", start: float, log: list[str]
) -> dict[str, float]:
    """Every stage of gemma-export ends with a line that begins with its name."""
    stages: dict[str, float] = {}
    last = start
    assert process.stderr is not None
    for line in process.stderr:
        log.append(line)
        stage = re.match(r"(checkpoint|reference|lower|inject|pack|bundle|done) ", line)
        if stage:
            now = time.monotonic()
            stages[stage[1]] = stages.get(stage[1], 0.0) + now - last
            last = now
    return stages


def measure(work: Work, num_repeats: int) -> Result:
    """Export the tiny model with every recipe, and a stack by ours and by the stock route."""
    routes = _routes(work, num_repeats)
    tiny = _tiny(num_repeats)
    files = (work.stack(STACK_LAYERS) / "target").glob("*.safetensors")
    checkpoint_mb = sum(path.stat().st_size for path in files) / 1e6
    settings = {
        "tiny": "gemma-export --target raspberry-pi --size tiny --no-check, by recipe; a stage "
        "runs until its line in the log; checkpoint holds the start of Python",
        "stack": f"{STACK_LAYERS} layers of E2B's widths, 2 of them shared, vocabulary 8192, bf16 "
        "checkpoint with a drafter; int8; prefill_128, decode, verify; 2048 KV rows",
        "ours": "exporter.lower.litert, from the checkpoint to the .litertlm",
        "stock": "litert_torch.convert of the same modules with their real float32 weights, then "
        "ai-edge-quantizer, file by file; stock-light: with lightweight_conversion",
        "imports": "a process that imports the same packages and does nothing",
        "peak": "resident memory of the whole process, by the kernel; anonymous: sampled",
    }
    found = {
        "stack, bf16 target checkpoint, MB": checkpoint_mb,
        "stack, our peak without the imports' / checkpoint": median(_above(routes, "ours"))
        / checkpoint_mb,
    }
    return Result(settings=settings, raw=tiny | routes, ratios=_ratios(routes), found=found)


def _ratios(routes: Raw) -> dict[str, float]:
    ratios = {}
    for route in ("stock", "stock-light"):
        for unit in ("seconds", "peak MB", "peak anonymous MB"):
            ratios[f"{route} / ours, {unit}"] = ratio(
                routes, f"stack {route}: {unit}", f"stack ours: {unit}"
            )
        above = zip(_above(routes, route), _above(routes, "ours"), strict=True)
        ratios[f"{route} / ours, peak MB without the imports'"] = median(a / b for a, b in above)
    return ratios


def _above(routes: Raw, route: str) -> list[float]:
    """Peak of a route, less that of its imports alone."""
    peaks, base = routes[f"stack {route}: peak MB"], routes["stack imports: peak MB"]
    return [peak - nothing for peak, nothing in zip(peaks, base, strict=True)]


def _tiny(num_repeats: int) -> Raw:
    raw: Raw = {}
    for _ in range(num_repeats):
        for recipe in RECIPES:
            with tempfile.TemporaryDirectory() as scratch:
                cost = watched("exporter", tiny_options(recipe, Path(scratch) / "bundle"))
            _add(raw, f"tiny {recipe}", cost)
    return raw


def _routes(work: Work, num_repeats: int) -> Raw:
    raw: Raw = {}
    stack = work.stack(STACK_LAYERS)
    for _ in range(num_repeats):
        for route in ROUTES:
            out = work.folder / "route"
            shutil.rmtree(out, ignore_errors=True)
            options = route_options(stack, replace(GRAPHS, route=route), out)
            cost = watched("tests.benchmarks.export_route", options)
            _add(raw, f"stack {route}", cost)
    return raw


def _add(raw: Raw, name: str, cost: Cost) -> None:
    values = {
        "seconds": cost.seconds,
        "peak MB": cost.peak_mb,
        "peak anonymous MB": cost.peak_anonymous_mb,
        **{f"{stage} s": seconds for stage, seconds in cost.stages.items()},
    }
    for unit, value in values.items():
        raw.setdefault(f"{name}: {unit}", []).append(value)


# Not five: memory hardly varies, and a repeat takes minutes.
main = command("export_cost", measure, num_repeats=3)

if __name__ == "__main__":
    main()
