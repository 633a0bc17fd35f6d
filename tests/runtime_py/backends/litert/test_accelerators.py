"""LiteRT's GPU accelerator stays out of the process: it ends one on a Raspberry Pi 4."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_py.backends.litert.accelerators import ACCELERATOR, empty_library, load_in_memory

TOY = Path(__file__).parents[1] / "toy.litertlm"
LINUX = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
pytestmark = pytest.mark.skipif(not LINUX, reason="Linux on x86-64 or aarch64 only")

LOAD = """
import importlib.util, pathlib, sys
from runtime_py.backends.litert import backend as litert
with_it = pathlib.Path(importlib.util.find_spec("ai_edge_litert").origin).with_name(sys.argv[2])
assert with_it.is_file(), with_it
litert.LiteRTBackend(pathlib.Path(sys.argv[1]), num_threads=1).verify([1], 0)
maps = pathlib.Path("/proc/self/maps").read_text()
print(str(with_it) in maps, f"memfd:{sys.argv[2]}" in maps)
"""


def test_a_loaded_model_brings_no_accelerator():
    pytest.importorskip("ai_edge_litert")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, TOY, ACCELERATOR], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True"]


def test_an_empty_library_answers_to_its_name():
    """By name only: there is no such file."""
    code = f"""
import ctypes
from tests.runtime_py.backends.litert import test_accelerators as here
here.load("libnone-of-this-machine.so")
library = ctypes.CDLL("libnone-of-this-machine.so")
print(hasattr(library, "LiteRtAcceleratorImpl"), hasattr(library, "{ACCELERATOR}"))
"""
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False"]


def load(name):
    machines = {"x86_64": 62, "aarch64": 183}
    load_in_memory(empty_library(name, machines[platform.machine()]))
