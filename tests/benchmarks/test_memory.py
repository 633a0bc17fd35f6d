"""The memory model beside what was measured: its factors, and the small end of what it says.

The true sizes are compared in tests/exporter/estimate/test_export.py.
"""

import pytest

from runtime_py.inspection.memory import FACTORS_FILE, memory_of, total_bytes
from tests.benchmarks.memory import factors, read, tiny_work

TINY = [key for key in read("memory") if key.startswith("tiny ")]


def test_the_committed_factors_are_those_of_the_results():
    """If not: python -m tests.benchmarks.memory"""
    assert FACTORS_FILE.read_text(encoding="utf-8") == factors()


@pytest.mark.parametrize("key", TINY)
def test_the_tiny_model_takes_what_was_measured(key):
    """Within a tenth; where nearly everything is Python and the runtime."""
    _, runtime, recipe = key.split()
    foreseen = total_bytes(memory_of(runtime, tiny_work(recipe).contents(runtime)))
    assert foreseen / 1e6 == pytest.approx(read("memory")[key]["generating MB"], rel=0.1)
