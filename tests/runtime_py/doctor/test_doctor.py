"""What the doctor says of devices, runtimes and bundles that are and are not as they should be."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime_py.backends import installed, probe
from runtime_py.backends.installed import install_command
from runtime_py.bench import official
from runtime_py.bundle.bundle import Bundle
from runtime_py.cli.commands import main
from runtime_py.cli.render_doctor import advice, print_diagnosis
from runtime_py.device.device import this_device
from runtime_py.doctor import doctor
from runtime_py.doctor.doctor import RUNTIMES, RuntimeState, diagnose, verdict
from runtime_py.inspection.sizes import known_sizes
from tests.runtime_py.bench.test_official import PI_4
from tests.runtime_py.bundles import write_fake_bundle

ROOT = Path(__file__).parents[3]
GB = 10**9


@pytest.fixture
def device(monkeypatch):
    """Pretend to be another device, with as much memory in all and available."""

    def pretend(memory_bytes, available_bytes, **changes):
        changed = {"memory_bytes": memory_bytes, "available_bytes": available_bytes, **changes}
        found = replace(this_device(), **changed)
        monkeypatch.setattr(doctor, "this_device", lambda: found)
        return found

    return pretend


@pytest.fixture
def loads(monkeypatch):
    """Pretend that these runtimes load, and no other is installed."""

    def pretend(*names):
        def state(name, _):
            there = name in names
            return RuntimeState(
                name=name,
                package=name,
                version="1.0" if there else None,
                problem=None if there else "not installed",
                command=None if there else install_command(name),
            )

        monkeypatch.setattr(doctor, "examine", state)

    return pretend


@pytest.fixture
def bundle(monkeypatch):
    """One for ExecuTorch and LiteRT that need 3 and 1 GB."""
    needs = {"executorch": 3 * GB, "litert": GB}
    found = {name: type("Found", (), {"memory_bytes": need}) for name, need in needs.items()}
    monkeypatch.setattr(doctor, "inspect_bundle", lambda _, runtime: found[runtime])
    manifest = type("Manifest", (), {"name": "model", "runtimes": needs})
    return Bundle(Path("model-pi"), manifest)


def installed_package(folder, code):
    """A folder for PYTHONPATH with an onnxruntime of that code in it."""
    (folder / "onnxruntime.py").write_text(code)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def get_available_providers(): pass", None),
        ("raise ImportError('libfoo.so.1 is missing')", "libfoo.so.1 is missing"),
        (
            "import os, signal, sys; sys.stderr.write('compiled with lse\\n'); sys.stderr.flush()\n"
            "os.kill(os.getpid(), signal.SIGILL)",
            "it ends the process with SIGILL (compiled with lse)",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "it ends the process with SIGKILL (no message)",
        ),
    ],
)
def test_a_runtime_is_loaded_in_a_process_of_its_own(monkeypatch, tmp_path, code, said):
    for name, value in installed_package(tmp_path, code).items():
        monkeypatch.setenv(name, value)
    assert probe.probe("onnx") == said


def test_a_runtime_that_hangs_is_given_up(monkeypatch, tmp_path):
    environment = installed_package(tmp_path, "import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.setattr(probe, "TIMEOUT_S", 1)
    assert probe.probe("onnx") == "it did not load within 1 s"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_runtimes_of_this_environment_load(runtime):
    pytest.importorskip(installed.PACKAGES[runtime].partition(".")[0], exc_type=ImportError)
    state = doctor.examine(runtime, this_device())
    assert state.loads, state
    assert state.version


def test_what_is_missing_comes_with_its_command(monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for extra in project["optional-dependencies"].values() for line in extra]
    marked = [f'{line} ; extra == "some"' for line in lines]
    monkeypatch.setattr(metadata, "requires", lambda _: marked)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = diagnose(None)
    commands = {state.name: state.command for state in found.runtimes}
    assert commands == {
        "litert": "pip install 'ai-edge-litert==2.3.0'",
        "executorch": "pip install --no-deps 'executorch==1.5.1'",
        "onnx": "pip install 'onnxruntime>=1.32'",
        "official": "pip install 'litert-lm-api==0.18.1'",
    }
    assert not found.healthy
    assert commands["litert"] in advice(found)[0]


def test_the_official_runtime_is_neither_loaded_nor_advised_on_a_pi_4(monkeypatch):
    on_a_pi_4 = replace(this_device(), **PI_4)
    monkeypatch.setattr(doctor, "probe", lambda name: pytest.fail(f"loaded {name}"))
    for is_there in (True, False):
        monkeypatch.setattr(installed, "is_installed", lambda _, there=is_there: there)
        state = doctor.examine("official", on_a_pi_4)
        assert state.problem == official.refusal(on_a_pi_4)
        assert state.command is None


@pytest.mark.parametrize(
    ("need", "total", "available", "expected"),
    [
        (1, 2, 1, "fits"),
        (2, 2, 1, "tight"),
        (3, 2, 1, "too large"),
        (2, 2, None, "fits"),
        (1, None, None, None),
    ],
)
def test_verdict(need, total, available, expected, device):
    assert verdict(need, device(total, available)) == expected


def test_a_bundle_is_run_with_what_loads(bundle, device, loads):
    device(4 * GB, 2 * GB)
    loads("litert", "executorch")
    found = diagnose(bundle)
    assert (found.use, found.healthy) == ("executorch", True)  # the bundle's first; tight
    assert [fit.verdict for fit in found.fits] == ["tight", "fits"]
    loads("litert")
    assert advice(diagnose(bundle)) == ["Next: gemma-run chat model-pi --runtime litert"]
    loads("onnx")
    assert diagnose(bundle).use is None
    assert install_command("litert") in advice(diagnose(bundle))[0]


def test_a_bundle_that_does_not_fit_is_no_success(bundle, device, loads):
    device(2 * GB, GB)
    loads("executorch")
    found = diagnose(bundle)
    assert not found.healthy
    assert "needs 3.00 GB on executorch" in advice(found)[0]


def test_without_a_bundle_the_largest_size_that_fits_is_named(device, loads):
    device(8 * GB, 7 * GB)
    loads("litert")
    found = diagnose(None)
    assert advice(found)[0].startswith("Largest that fits with int8: e4b.")
    device(2 * GB, 2 * GB)
    assert advice(diagnose(None))[0].startswith("Largest that fits with int4: e2b.")
    device(GB // 2, GB // 2)
    assert advice(diagnose(None))[0].startswith("No published size fits here")
    device(None, None)
    assert advice(diagnose(None))[0].startswith("How much memory this device has is unknown")


@pytest.mark.parametrize(
    ("machine", "runtime", "expected"),
    [
        ("aarch64", "litert", "raspberry-pi --size 12b --quantize int8 --runtime litert"),
        ("aarch64", "executorch", "raspberry-pi --size 12b --quantize int8 --runtime executorch"),
        ("x86_64", "onnx", "desktop --size e4b --quantize int8 --runtime onnx"),
    ],
)
def test_only_what_is_installed_here_is_advised(device, loads, machine, runtime, expected):
    device(16 * GB, 15 * GB, architecture=machine, flags=None)
    loads(runtime)
    found = diagnose(None)
    assert f"--target {expected} --context 2048" in advice(found)[0]
    assert {fit.runtime for fit in found.fits if fit.what.startswith("e2b int")} == {runtime}


def test_without_a_runtime_too(device, loads):
    device(8 * GB, 7 * GB)
    loads()
    install, export = advice(diagnose(None))
    assert install == f"No runtime loads here. Next: {install_command('litert')}"
    assert export.startswith("Largest that fits with int8: e4b.")


def test_the_smallest_size_comes_first():
    needs = [size.recipes["int4"].matrices_bytes for size in known_sizes()]
    assert needs == sorted(needs)


def test_the_table_says_what_a_person_asks(device, loads, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    device(8 * GB, 7 * GB, **PI_4)
    loads("onnx")
    print_diagnosis(diagnose(None))
    said = capsys.readouterr().out
    for text in (
        "Raspberry Pi 4 Model B Rev 1.4",
        "Cortex-A72",
        "no   LSE atomics",
        "8.00 GB, 7.00 GB of it available",
        "\nlitert: pip install ",
        "e4b int8",
        "too large",
    ):
        assert text in said, said


def test_json_is_one_object_and_the_exit_code_says_whether_anything_loads(loads):
    for names, exit_code in ((("litert",), 0), ((), 1)):
        loads(*names)
        result = CliRunner().invoke(main, ["doctor", "--json"])
        assert result.exit_code == exit_code
        found = json.loads(result.stdout)
        assert found["healthy"] == (exit_code == 0)
        assert found["device"]["num_cores"] >= 1
        assert {state["name"] for state in found["runtimes"]} == {*RUNTIMES, "official"}


def test_no_bundle_is_one_line(tmp_path):
    result = CliRunner().invoke(main, ["doctor", str(tmp_path)])
    assert result.exit_code == 1
    assert "no manifest.json" in result.stderr


@pytest.mark.slow
def test_a_base_install_says_what_to_install(tmp_path):
    """A real virtual environment with gemma-run and no runtime."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    source = tmp_path / "source"
    subprocess.run(
        ["git", "clone", "--quiet", "--no-hardlinks", ROOT, source], check=True
    )  # pip leaves build folders
    install = [environment / "bin" / "pip", "install", "--quiet", source]
    subprocess.run(install, check=True)
    done = subprocess.run(
        [environment / "bin" / "gemma-run", "doctor"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "COLUMNS": "110"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    for line in (
        "\nlitert: pip install 'ai-edge-litert==2.3.0'\n",
        "\nexecutorch: pip install --no-deps 'executorch==1.5.1'\n",
        "\nonnx: pip install 'onnxruntime>=1.32'\n",
    ):
        assert line in done.stdout, done.stdout
    print(done.stdout)  # noqa: T201
    bundle = write_fake_bundle(tmp_path / "bundle")
    for command, step in (
        (("gemma-run", "chat", bundle), "pip install 'ai-edge-litert==2.3.0'"),
        (("gemma-export", "--target", "web", "--size", "tiny"), "'gemma-export[export]'"),
    ):
        program, *options = command
        done = subprocess.run(
            [environment / "bin" / program, *options],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert step in done.stderr
