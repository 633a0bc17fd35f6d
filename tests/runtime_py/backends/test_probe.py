"""What native code does to its process is one line of the command that tried it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime_py.backends import SessionOptions, probe
from runtime_py.cli.commands import main
from runtime_py.device.own_process import own_module
from runtime_py.errors import RunError
from tests.runtime_py.backends.toys import TOYS
from tests.runtime_py.bundles import write_fake_bundle

MODEL = Path("somewhere") / "model.pte"
ONE_THREAD = SessionOptions(num_threads=1)


@pytest.fixture
def probing(monkeypatch):
    """What a probe runs instead."""
    return lambda code: monkeypatch.setattr(probe, "PROGRAM", (sys.executable, "-c", code))


def test_a_crash_is_named(probing):
    probing(
        "import os, sys; sys.stderr.write('bad\\n'); sys.stderr.flush(); os.kill(os.getpid(), 7)"
    )
    with pytest.raises(RunError, match=r"^somewhere/model\.pte: .* SIGBUS \(bad\)") as raised:
        probe.probe_model("executorch", MODEL, 0, ONE_THREAD)
    assert "\n" not in str(raised.value)


def test_what_does_not_end_is_ended(probing, monkeypatch):
    monkeypatch.setattr(probe, "LEAST_S", 0.1)
    probing(
        "import time; from runtime_py.backends import load, probe; probe.SLOW = 0\n"
        "probe.LOAD['onnx'] = lambda: None; load.BACKENDS['onnx'] = lambda *_: time.sleep(60)\n"
        "probe.main()"
    )
    with pytest.raises(RunError, match=r"model\.pte: .* it did not come to an end in the time"):
        probe.probe_model("onnx", MODEL, 0, ONE_THREAD)


def test_check_tries_the_graphs_before_it_loads_them(probing, monkeypatch, tmp_path):
    bundle = write_fake_bundle(tmp_path / "bundle")
    probing("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setattr("runtime_py.cli.commands.check_bundle", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("runtime_py.backends.load.require", lambda *_: None)
    done = CliRunner().invoke(main, ["check", str(bundle)])
    assert done.exit_code == 1
    assert "model.litertlm: tried in a process of its own, it ends the process with SIGSEGV" in (
        done.stderr
    )


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_every_graph_is_called(toy, capfd):
    probe.probe_model(toy.extra, toy.bundle, 0, ONE_THREAD)
    command = [*probe.PROGRAM, toy.extra, str(toy.bundle), "60", "1"]
    assert subprocess.run(command, check=False).returncode == 0, capfd.readouterr().err


def test_an_error_of_the_file_is_left_to_the_next_load(tmp_path):
    probe.probe_model("onnx", tmp_path / "none.onnx", 0, ONE_THREAD)


def test_our_modules_are_never_those_of_the_working_directory(tmp_path):
    """As where a bundle is, that anybody may have made."""
    for name in ("runtime_py.py", "signal.py", "subprocess.py", "contextlib.py", "numpy.py"):
        (tmp_path / name).write_text("raise SystemExit(77)")
    shutil.copytree(TOYS["onnx"].bundle.parent, tmp_path / "model")
    model = tmp_path / "model" / TOYS["onnx"].bundle.name
    command = [*own_module("runtime_py.backends.probe"), "onnx", str(model), "60", "1"]
    assert subprocess.run(command, check=False, cwd=tmp_path).returncode == 0
