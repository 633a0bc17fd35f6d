"""Who may know whom, and what never enters the device's program."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_hold():
    linter = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as m; m()"]
    done = subprocess.run(
        [*linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_runtime_module_loads_without_a_model_framework():
    program = """
import importlib, json, pkgutil, sys
import runtime_py
for module in pkgutil.walk_packages(runtime_py.__path__, "runtime_py."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "runtime_py" in loaded
    assert not loaded & {"torch", "transformers", "litert_torch", "jax", "exporter", "safetensors"}


def private_names(path):
    """Names with an underscore that a module takes from others, in imports and attributes."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute) and f"self.{node.attr}" not in text:
            names = [node.attr]
        else:
            continue
        yield from (name for name in names if name.startswith("_") and not name.endswith("__"))


def test_private_parts_of_vendors_stay_behind_their_fences():
    for path in (ROOT / "exporter").rglob("*.py"):
        assert path.name == "vendor.py" or not list(private_names(path)), path


def test_text_reaches_a_terminal_in_one_place():
    for package in ("exporter", "runtime_py"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            speaks = [
                word for word in ("click.echo", "rich.console", "Table(title") if word in text
            ]
            console = ROOT / "runtime_py" / "terminal" / "console.py"
            assert not speaks or path == console, (path, speaks)


def test_modules_stay_short_enough_to_read():
    for package in ("exporter", "runtime_py"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def committed_files():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if not path.is_symlink()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the git checkout")
def test_what_is_committed_is_small_and_names_no_machine():
    # Spelled in parts, so that this file does not name them.
    hosts = ("pypi" + ".org", "python" + "hosted", "registry.npm" + "js", "deb.deb" + "ian.org")
    folders = (
        "/work/" + "main",
        "/opt/" + "wheels",
        "/opt/" + "pypi",
        "/ro" + "ot/",
        "/tmp/" + "w/",
    )
    for path in committed_files():
        assert path.stat().st_size < 15e6, path
        if path.suffix in (
            ".safetensors",
            ".litertlm",
            ".npz",
            ".pte",
            ".onnx",
            ".data",
            ".so",
            ".png",
        ):
            continue
        text = path.read_text(encoding="utf-8")
        for name in (*hosts, *folders):
            assert name not in text, (path, name)
