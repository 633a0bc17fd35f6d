"""Whatever ends a real export with --overwrite: the old bundle or the new one is there, whole."""

import json
import os
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import ROOT


@pytest.mark.parametrize(
    "num_exports", [4, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_old_or_new_bundle_and_no_debris_after_the_next_export(tmp_path, num_exports):
    """By SIGINT, SIGTERM, SIGHUP and SIGKILL in turn."""
    command = [
        sys.executable,
        "-m",
        "tests.end_to_end.end_exports",
        tmp_path,
        str(num_exports),
        "7",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["ends"]) == num_exports
    assert found["wrong"] == []
