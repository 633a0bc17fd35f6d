"""gemma-run in a process of its own, on bundles whose graphs are scripted."""

import contextlib
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

from runtime_py.bundle.manifest import file_entry
from runtime_py.terminal.command import TRACEBACK
from tests.runtime_py.bundles import write_fake_bundle

ROOT = Path(__file__).parents[2]
TOY_ONNX = Path(__file__).parent / "backends" / "toy_onnx"
# Names, a recipe and a path as an enemy would write them: a terminal's title, rich's markup, a
# colour by a C1 control, a line of its own, and a turn of the reading order.
HOSTILE = "\x1b]0;title\x07[/b][red]:smile:\x9b31m\npassed: all\u202etxet"
_PROGRAM = """
import sys
from runtime_py.backends.load import BACKENDS
from runtime_py.cli.commands import main
from tests.runtime_py.scripted_backend import ScriptedBackend
BACKENDS["onnx"] = lambda *_: ScriptedBackend(vocab_size=300)
main(prog_name="gemma-run")
"""


def gemma_run(*arguments: object, **options) -> subprocess.CompletedProcess:
    """A command that finds a scripted backend wherever it opens ONNX graphs.

    Args:
        options: of subprocess.run; redirected is what a shell would have after the command.
    """
    shell = ("sh", "-c", f'"$0" "$@" {options.pop("redirected", "")}')
    return subprocess.run(
        [*shell, sys.executable, "-c", _PROGRAM, *map(str, arguments)],
        env=environment(**options.pop("env", {})),
        **{"capture_output": True, "check": False, "timeout": 60} | options,
    )


def on_terminal(
    *arguments: object, typed: str = "", size: tuple[int, int] = (24, 120), **env: str
) -> str:
    """The same on a terminal of so many rows and columns, without colours; what it shows."""
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    os.write(near, typed.encode())
    env = environment(**{"TERM": "dumb", "COLUMNS": str(size[1]), "LINES": str(size[0])} | env)
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    with subprocess.Popen(command, env=env, stdin=far, stdout=far, stderr=far) as process:
        os.close(far)
        shown = b""
        with contextlib.suppress(OSError):  # of a terminal whose other end was closed
            while piece := os.read(near, 65536):
                shown += piece
        process.wait(60)
    os.close(near)
    return shown.decode()


def environment(**more: str) -> dict[str, str]:
    """As a user has it: errors nobody foresaw show no traceback."""
    base = {name: value for name, value in os.environ.items() if name != TRACEBACK}
    return {**base, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **more}


def hostile_bundle(parent: Path) -> Path:
    """Valid, with ONNX graphs and a scripted model; every word in it is hostile."""
    folder = write_fake_bundle(parent / HOSTILE.replace("/", "\\"))
    (folder / "model.litertlm").unlink()
    for path in TOY_ONNX.glob("model.*"):
        shutil.copy(path, folder)
    values = json.loads((folder / "manifest.json").read_text())
    values["name"] = values["device"] = HOSTILE
    entry = values["runtimes"].pop("litert")
    values["runtimes"]["onnx"] = entry | {"model": "model.fill.onnx", "recipe": HOSTILE}
    del values["files"]["model.litertlm"]
    values["files"] |= {p.name: file_entry(p).model_dump() for p in folder.glob("model.*")}
    (folder / "manifest.json").write_text(json.dumps(values))
    return folder
