"""How every benchmark here measures and what it writes: alternation, medians, ratios, one JSON."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from runtime_py.bench.interval import median_interval as interval_of
from tests.benchmarks.inputs import Work

RESULTS = Path(__file__).with_name("results")
TOOLS = (
    *("ai-edge-litert", "ai-edge-quantizer", "executorch", "litert-converter", "litert-lm-api"),
    *("litert-torch", "numpy", "onnxruntime", "torch", "transformers"),
)
CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


Raw = dict[str, list[float]]  # what was measured, with its unit last -> one value per repeat


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one benchmark found."""

    settings: Mapping[str, Any]
    raw: Raw
    ratios: Mapping[str, float]
    found: Mapping[str, Any] = field(default_factory=dict)  # anything that is not timed
    misses: Sequence[str] = ()  # bounds that were not kept, a line each


def alternate(
    calls: Mapping[str, Callable[[], float]], num_repeats: int, num_warmups: int = 1
) -> Raw:
    """Run the calls in turn (A B A B ...), so that drift hits all alike; each returns a value."""
    raw: Raw = {name: [] for name in calls}
    for repeat in range(num_warmups + num_repeats):
        for name, call in calls.items():
            value = call()
            if repeat >= num_warmups:
                raw[name].append(value)
    return raw


def ratio(raw: Raw, above: str, below: str) -> float:
    """The median of the ratios of neighbouring measurements."""
    return median(neighbours(raw, above, below))


def neighbours(raw: Raw, above: str, below: str) -> list[float]:
    return [a / b for a, b in zip(raw[above], raw[below], strict=True)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies of what the values were drawn from, with 95 % confidence or more.

    Raises:
        ValueError: if there are fewer than six values, which are too few for that.
    """
    interval = interval_of(values, 0.95)
    if interval is None:
        raise ValueError(f"{len(values)} values have no 95 % interval; at least 6 are needed")
    return interval


def command(
    name: str, measure: Callable[[Work, int], Result], num_repeats: int = 5
) -> click.Command:
    """The command line that every benchmark has."""

    @click.command(name=name, help=measure.__doc__)
    @click.option("--output", type=click.Path(path_type=Path), default=RESULTS / f"{name}.json")
    @click.option("--repeats", type=click.IntRange(1), default=num_repeats, show_default=True)
    def run(output: Path, repeats: int) -> None:
        machine = describe_machine()  # its load is that of before
        result = measure(Work(), repeats)
        finish(output, name, machine, result)

    return run


def finish(output: Path, name: str, machine: Mapping[str, Any], result: Result) -> None:
    """Keep and show what was found; exit code 1 if it is not as it has to be."""
    write(output, name, machine, result)
    show(name, result)
    for miss in result.misses:
        click.echo(f"{name}: missed: {miss}", err=True)
    if result.misses:
        sys.exit(1)


def write(output: Path, name: str, machine: Mapping[str, Any], result: Result) -> None:
    values = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": machine,
        "tools": {"python": platform.python_version()} | versions(TOOLS),
        "settings": result.settings,
        "ratios": {name: _rounded(value) for name, value in result.ratios.items()},
        "medians": {name: _rounded(median(values)) for name, values in result.raw.items()},
        "found": result.found,
        "misses": list(result.misses),
        "raw": {name: [_rounded(v) for v in values] for name, values in result.raw.items()},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def show(name: str, result: Result) -> None:
    """Tables on stdout."""
    table = Table("measured", "median", "min", "max", title=name)
    for key, values in result.raw.items():
        table.add_row(key, *(f"{v:.4g}" for v in (median(values), min(values), max(values))))
    ratios = Table("ratio", "value")
    for key, value in result.ratios.items():
        ratios.add_row(key, f"{value:.3f}")
    for key, found in result.found.items():
        ratios.add_row(key, str(found))
    console = Console()
    console.print(table)
    console.print(ratios)


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge the figures, and nothing that names the machine."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", about, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", about, re.M)
    words = set(flags[1].split()) if flags else set()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpu_features": [feature for feature in CPU_FEATURES if feature in words],
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def versions(tools: Sequence[str]) -> dict[str, str]:
    """Of those packages that are installed; "none" for the others."""
    found = {}
    for tool in tools:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            found[tool] = "none"
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
