"""Damaged bundles: one clear line each, whatever the damage and whatever reads it."""

import json
import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, run
from tests.end_to_end.fuzz_bundles import damaged, write_toys

NUM_QUICK, NUM_SLOW, AT_ONCE = 450, 6000, 150  # a hundred more are hubs, in test_hub_hostile.py
MAX_CPU_S = 10.0
MAX_SILENCE_S = 120.0  # many times what a case takes on a busy machine
MAX_GROWTH_BYTES = 1 << 30


def run_cases(toys: Path, seeds: Sequence[int]) -> Iterator[dict]:
    """What became of every seed; a process that dies of one is followed by another."""
    left = list(seeds)
    while left:
        command = [sys.executable, "-m", "tests.end_to_end.fuzz_bundles", str(toys)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (
            open(toys / "stderr.txt", "wb") as said,
            subprocess.Popen(
                [*command, *map(str, left)], stdout=subprocess.PIPE, stderr=said, env=environment
            ) as process,
        ):
            for answer in _answers(process):
                if "begins" in answer:
                    seed = answer["begins"]
                    left.remove(seed)
                else:
                    seed = None
                    yield answer
            process.kill()
            process.wait()
        if left or seed is not None:
            shutil.rmtree(toys / f"case-{process.pid}", ignore_errors=True)
            assert seed is not None, (toys / "stderr.txt").read_text()
            yield {"seed": seed, "died": process.returncode}


def _answers(process: subprocess.Popen) -> Iterator[dict]:
    """Lines of JSON, until there are no more or none comes for too long."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    kept = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(MAX_SILENCE_S):
            piece = process.stdout.read()
            if not piece:
                process.wait()
                return
            *lines, kept = (kept + piece).split(b"\n")
            yield from map(json.loads, lines)


def judge(case: dict) -> str:
    """What is wrong with how a case ended; empty if nothing is."""
    if case["broke"]:
        return "a traceback"
    errors = [line for line in case["stderr"].splitlines() if ": error: " in line]
    if case["code"] not in (0, 1) or len(errors) > 1:
        return "not one line"
    if case["code"] == 1 and not errors and case["command"] != "check":
        return "no line"
    if any(not line.isprintable() or len(line) > 1000 for line in errors):
        return "a line that is not fit to be shown"
    if case["cpu_s"] > MAX_CPU_S:
        return "too slow"
    return "too much memory" if case["growth_bytes"] > MAX_GROWTH_BYTES else ""


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    write_toys(folder)
    return folder


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=[pytest.mark.slow] if first >= NUM_QUICK else [])
        for first in range(0, NUM_SLOW, AT_ONCE)
    ],
)
def test_damaged_bundles(toys, tmp_path, first):
    died = []
    for case in run_cases(toys, range(first, first + AT_ONCE)):
        if "died" in case:
            died.append(case)
        else:
            assert not judge(case), (judge(case), case)
    for case in died:
        did, _ = damaged(case["seed"], toys, tmp_path / str(case["seed"]))
        done = run("gemma-run", "check", tmp_path / str(case["seed"]), "--threads", 1, timeout=60)
        assert done.returncode == 1, (case, did, done)
        assert done.stderr.splitlines()[-1].startswith("gemma-run: error: "), (case, did, done)
        assert "Traceback" not in done.stderr, (case, did)
