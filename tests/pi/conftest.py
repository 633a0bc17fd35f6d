"""The arm64 root and the exported bundles, made once and kept in build/pi; the log's table."""

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from runtime_py.backends.load import BACKENDS
from tests.pi.emulator import CORES, Pi, why_not
from tests.pi.root import PROJECT, build_root, installed

FOLDER = PROJECT / "build" / "pi"
RUNTIMES = tuple(BACKENDS)
RECIPES = ("float32", "int8")
HERE = Path(__file__).parent
# What a bundle is made from.
SOURCES = ("exporter", "runtime_py/bundle", "models/gemma4-tiny")


@dataclass(frozen=True)
class Made:
    """What the tests need of files."""

    root: Path
    bundles: dict[str, Path]  # by recipe


@pytest.fixture(scope="session")
def made() -> Made:
    """All of it, made at the same time where it is not there."""
    if reason := why_not():
        pytest.skip(f"NO EMULATED RASPBERRY PI: {reason}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / "lock"), ThreadPoolExecutor() as pool:
        root = pool.submit(build_root, FOLDER)
        bundles = {recipe: pool.submit(export, recipe) for recipe in RECIPES}
        return Made(root.result(), {recipe: bundle.result() for recipe, bundle in bundles.items()})


def export(recipe: str) -> Path:
    """The tiny model for every runtime, recorded on few prompts only: emulation is slow."""
    bundle = FOLDER / f"{recipe}-{_digest()}"
    if bundle.is_dir():
        return bundle
    for old in FOLDER.glob(f"{recipe}-*"):
        shutil.rmtree(old)
    command = [sys.executable, "-m", "exporter", "--target", "raspberry-pi", "--size", "tiny"]
    command += [part for runtime in RUNTIMES for part in ("--runtime", runtime)]
    command += ["--quantize", recipe, "--prompts", str(HERE / "prompts.jsonl"), "--no-check"]
    done = subprocess.run(
        [*command, "--output", str(bundle)],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return bundle


def _digest() -> str:
    digest = hashlib.sha256("\n".join(installed()).encode())
    digest.update((HERE / "prompts.jsonl").read_bytes())
    for source in map(PROJECT.joinpath, SOURCES):
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file() and path.suffix != ".pyc":
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session", params=CORES)
def core(request) -> str:
    return request.param


@pytest.fixture(scope="session", params=RUNTIMES)
def runtime(request) -> str:
    return request.param


@pytest.fixture(scope="session", params=RECIPES)
def recipe(request) -> str:
    return request.param


@pytest.fixture
def bundle(made, recipe) -> Path:
    return made.bundles[recipe]


@pytest.fixture
def pi(core, made, bundle) -> Pi:
    return Pi(core, made.root, bundle)


@pytest.fixture
def here():
    """The same command on this machine."""

    def gemma_run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runtime_py", *map(str, arguments)],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return gemma_run


@pytest.fixture
def log(record_property):
    """A line for the table at the end; from a worker of pytest-xdist too."""
    return lambda line: record_property("pi", line)


def pytest_terminal_summary(terminalreporter) -> None:
    reports = terminalreporter.stats.get("passed", [])
    lines = [value for report in reports for name, value in report.user_properties if name == "pi"]
    if lines:
        terminalreporter.section("emulated Raspberry Pi against this machine")
        for line in sorted(lines):
            terminalreporter.write_line(line)
    for report in terminalreporter.stats.get("skipped", [])[:1]:
        terminalreporter.section("SKIPPED: NOTHING RAN ON A RASPBERRY PI'S CORES")
        terminalreporter.write_line(str(report.longrepr[2]))
