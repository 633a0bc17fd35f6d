"""Freed memory goes back to the system."""

import subprocess
import sys

import pytest

CODE = """
import re
from pathlib import Path
from runtime_py.device import freed_memory

def resident_mb():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s*(\\d+)", status)[1]) / 1024

blocks = [bytes(1000) for _ in range(60_000)]
last = bytes(1000)  # keeps glibc from giving back what lies below it
full = resident_mb()
del blocks
kept = resident_mb()
freed_memory.give_back()
print(full, kept, resident_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_freed_is_given_back():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    full, kept, after = map(float, done.stdout.split())
    assert kept > full - 10, "this C library keeps nothing; the test shows nothing"
    assert after < full - 40
