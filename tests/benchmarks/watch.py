"""Seconds and peak memory of a process, and how long its stages took."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.inputs import ROOT, python_command
from tests.benchmarks.record import Raw

SAMPLE_S = 0.02  # between two looks at the memory
PEAK = (
    "resident memory of the whole process, by the kernel, with the pages of mapped files that "
    "are in memory; anonymous: without them, sampled"
)


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


def add_cost(raw: Raw, name: str, cost: Cost) -> None:
    """One more repeat of `name`."""
    values = {
        "seconds": cost.seconds,
        "peak MB": cost.peak_mb,
        "peak anonymous MB": cost.peak_anonymous_mb,
        **{f"{stage} s": seconds for stage, seconds in cost.stages.items()},
    }
    for unit, value in values.items():
        raw.setdefault(f"{name}: {unit}", []).append(value)
