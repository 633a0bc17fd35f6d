"""Seconds, peak memory and disk of a process, and how long its stages took."""

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.inputs import ROOT, python_command
from tests.benchmarks.record import Raw

SAMPLE_S = 0.02  # between two looks at the memory
DISK_SAMPLE_S = 0.05  # packing a small bundle takes less than a second
SPEED_SAMPLE_S = 1.0
SPEED_S = 0.0074  # of _count() on a processor like that of exporter/estimate, undisturbed
SPEED = (
    "how fast the processor was meanwhile: 1 is that of exporter/estimate with nothing else to "
    "do; by a loop of Python's, every second, whose time counts only while it runs"
)
PEAK = (
    "resident memory of the whole process, by the kernel, with the pages of mapped files that "
    "are in memory; anonymous: without them, sampled"
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one process took, and what it said."""

    seconds: float
    cpu_s: float  # of all its threads
    speed: float  # see SPEED
    peak_mb: float  # resident, with the pages of mapped files that are in memory
    peak_anonymous_mb: float  # resident and not backed by a file: what cannot be dropped
    stages: dict[str, float]  # seconds until the stage's line on stderr, from the line before
    stage_cpu_s: dict[str, float]
    stage_peaks_mb: dict[str, float]  # resident in that time, sampled
    disk_mb: float  # the most that lay in `folder`, sampled
    stdout: str
    stderr: str


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What else is looked at, and allowed."""

    folder: Path | None = None  # whose files are weighed while the process runs
    environment: Mapping[str, str] = field(default_factory=dict)  # beside this process's own
    exit_codes: tuple[int, ...] = (0,)  # that are no failure


def watched(module: str, arguments: Sequence[object], watch: Watch | None = None) -> Cost:
    """Run `python -m module ...` and watch it.

    The peak is the kernel's own count. A child starts with its parent's, so this process must
    stay smaller than what it watches.
    """
    watch = watch or Watch()
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as stdout:
        process = subprocess.Popen(
            python_command(module, arguments),
            cwd=ROOT,
            env={**os.environ, **watch.environment},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        sampler = Sampler(process.pid, watch.folder)
        sampler.start()
        log: list[str] = []
        stages = _read_stages(process, log, sampler)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        sampler.join()
        stdout.seek(0)
        said = stdout.read()
    if process.returncode not in watch.exit_codes:
        raise RuntimeError(f"{module} failed:\n{''.join(log[-20:])}")
    return Cost(
        seconds=seconds,
        cpu_s=usage.ru_utime + usage.ru_stime,
        speed=sampler.speed,
        peak_mb=usage.ru_maxrss * 1024 / 1e6,
        peak_anonymous_mb=sampler.peak_anonymous_mb,
        stages={name: stage.seconds for name, stage in stages.items()},
        stage_cpu_s={name: stage.cpu_s for name, stage in stages.items()},
        stage_peaks_mb={name: stage.peak_mb for name, stage in stages.items()},
        disk_mb=sampler.disk_mb,
        stdout=said,
        stderr="".join(log),
    )


class Sampler(threading.Thread):
    """Looks at a process's memory, and at a folder's files, until the process is gone."""

    def __init__(self, pid: int, folder: Path | None = None) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self._folder = folder
        self._next_disk = self._next_count = time.monotonic()
        self._counts_s: list[float] = []
        self.peak_anonymous_mb = 0.0
        self.peak_mb = 0.0
        self.disk_mb = 0.0

    @property
    def speed(self) -> float:
        """See SPEED."""
        counts_s = self._counts_s or [_count()]  # of a process that was gone at once
        return SPEED_S * len(counts_s) / sum(counts_s)

    def take_peak_mb(self) -> float:
        """The resident peak since the last time this was asked."""
        peak, self.peak_mb = self.peak_mb, 0.0
        return peak

    def run(self) -> None:
        while self._look():
            time.sleep(SAMPLE_S)

    def _look(self) -> bool:
        try:
            text = self._status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        found = {
            key: int(kb) * 1024 / 1e6 for key, kb in re.findall(r"^(\w+):\s*(\d+) kB", text, re.M)
        }
        if "RssAnon" not in found:  # it has ended and waits to be collected
            return False
        self.peak_anonymous_mb = max(self.peak_anonymous_mb, found["RssAnon"])
        self.peak_mb = max(self.peak_mb, found["VmRSS"])
        if self._folder is not None and time.monotonic() >= self._next_disk:
            self.disk_mb = max(self.disk_mb, used_mb(self._folder))
            self._next_disk = time.monotonic() + DISK_SAMPLE_S
        if time.monotonic() >= self._next_count:
            self._counts_s.append(_count())
            self._next_count = time.monotonic() + SPEED_SAMPLE_S
        return True


def _count() -> float:
    """Seconds of the processor that a loop takes which fits its caches."""
    start, total = time.thread_time(), 0
    for number in range(100_000):
        total += number * number % 7
    return time.thread_time() - start


def used_mb(folder: Path) -> float:
    """What a folder's files take on the disk; files that go meanwhile are not counted."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total / 1e6


@dataclass
class _Stage:
    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0


def _read_stages(
    process: "subprocess.Popen[str]", log: list[str], sampler: Sampler
) -> dict[str, _Stage]:
    """Every stage of gemma-export ends with a line that begins with its name."""
    stages: dict[str, _Stage] = {}
    last, last_cpu = time.monotonic(), 0.0
    assert process.stderr is not None
    for line in process.stderr:
        log.append(line)
        if found := re.match(r"(checkpoint|reference|lower|inject|pack|bundle|done) ", line):
            stage = stages.setdefault(found[1], _Stage())
            now, cpu = time.monotonic(), _cpu_s(process.pid)
            stage.seconds += now - last
            stage.cpu_s += cpu - last_cpu
            stage.peak_mb = max(stage.peak_mb, sampler.take_peak_mb())
            last, last_cpu = now, cpu
    return stages


def _cpu_s(pid: int) -> float:
    """Of all threads so far, those that ended too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
