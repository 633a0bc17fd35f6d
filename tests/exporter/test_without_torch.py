"""gemma-export where only gemma-run's packages are installed, as on a device."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime_py.backends.installed import install_extra, our_version

ROOT = Path(__file__).parents[2]
# Everything that the extra "export" brings; None in sys.modules is a module that is not there.
PROGRAM = """
import sys
missing = ("torch", "transformers", "safetensors", "huggingface_hub", "httpx2", "filelock", "onnx",
    "onnx_ir", "onnxscript", "litert_torch", "litert_converter", "litert_lm_builder", "executorch")
sys.modules.update(dict.fromkeys(missing))
from exporter.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("options", "exit_code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        (("--print-recipe", "int8"), 0),
        (("--size", "tiny"), 2),
        (("--target", "desktop", "--size", "tiny", "--output", "/nowhere/x"), 1),
    ],
)
def test_it_helps_and_refuses_in_one_line(options, exit_code):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == exit_code, done.stderr
    if exit_code == 1:
        assert done.stderr.startswith("gemma-export: error: ")
        assert done.stderr.endswith(f"running a bundle does not; {install_extra('export')}\n")
        assert done.stderr.count("\n") == 1
    elif exit_code == 0:
        assert done.stderr == ""


def test_the_extra_is_named_as_pip_finds_it(monkeypatch):
    assert install_extra("export") == "pip install 'gemma-export[export]'"
    monkeypatch.setattr("runtime_py.backends.installed.version", lambda _: None)
    assert install_extra("export") == f"pip install '{ROOT}[export]'"
    assert "not installed" in our_version()
