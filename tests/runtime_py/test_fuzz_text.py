import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("first", "last"), [(0, 60), pytest.param(60, 5000, marks=pytest.mark.slow)]
)
def test_a_damaged_tokenizer_or_template_works_or_is_one_line(first, last):
    """In a process of its own: an abort must not end the tests."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime_py.fuzz_text", str(first), str(last)],
        capture_output=True,
        text=True,
        timeout=10 * (last - first),
        check=False,
    )
    seed = done.stdout.split()[-1:]
    assert done.returncode == 0, f"seed {seed}: exit code {done.returncode}\n{done.stderr}"
    assert done.stderr == "", f"seed {seed}"
