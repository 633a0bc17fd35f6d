"""What the doctor and the official runtime say on a Raspberry Pi's cores."""

import json

import pytest

from tests.pi.emulator import BUNDLE, Pi

pytestmark = [pytest.mark.pi, pytest.mark.timeout(3600)]

MODELS = {
    "cortex-a76": ("Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76"),
    "cortex-a72": ("Raspberry Pi 4 Model B Rev 1.4", "Cortex-A72"),
}
HAS_LSE = {"cortex-a76": True, "cortex-a72": False}
DIRECT = """
import litert_lm
litert_lm.Engine("/bundle/model.litertlm", backend=litert_lm.Backend.CPU(), cache_dir="/tmp")
"""
ENGINE = """
from pathlib import Path
from runtime_py.bench.official import OfficialEngine
OfficialEngine(Path("/bundle/model.litertlm"), mtp=False, num_threads=1)
"""


@pytest.fixture
def int8(core, made):
    return Pi(core, made.root, made.bundles["int8"])


def test_the_doctor_knows_the_device_and_what_loads(int8, core, log):
    done = int8.gemma_run("doctor", BUNDLE, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    device = found["device"]
    assert (device["model"], device["processor"]) == MODELS[core]
    assert device["features"]["atomics"] == device["features"]["asimddp"] == HAS_LSE[core]
    assert device["memory_bytes"] >= device["available_bytes"] > 0
    problems = {state["name"]: state["problem"] for state in found["runtimes"]}
    assert [problems[name] for name in ("litert", "executorch", "onnx")] == [None] * 3
    assert (problems["official"] is None) == HAS_LSE[core]
    assert (found["use"], found["healthy"]) == ("litert", True)
    log(f"doctor     {core}: {device['model']}, {device['processor']}; {problems}")


def test_the_doctor_is_readable(int8, core):
    done = int8.gemma_run("doctor")
    assert done.returncode == 0, done.stderr
    for text in (*MODELS[core], "memory", "e2b int4", "loads"):
        assert text in done.stdout, done.stdout


def test_the_official_runtime_is_refused_where_it_would_die(made, log):
    """What is refused dies indeed."""
    pi_4 = Pi("cortex-a72", made.root, made.bundles["int8"])
    died = pi_4.python("-c", DIRECT)
    assert died.returncode < 0 or died.returncode >= 128, died.stderr
    refused = pi_4.python("-c", ENGINE)
    assert refused.returncode == 1
    assert "RunError" in refused.stderr
    said = refused.stderr.strip().splitlines()[-1]
    assert "LSE atomics" in said
    assert "Cortex-A72, Raspberry Pi 4 Model B Rev 1.4" in said
    log(f"official   cortex-a72 (Raspberry Pi 4): {said}")
