"""Torch's threads sleep while they wait, unless the user has it otherwise."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, exporter
assert "torch" not in sys.modules
import os
print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("set_to", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads(set_to, found):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if set_to is None else {"OMP_WAIT_POLICY": set_to}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found
