"""Real exports to ONNX of a very small model with --overwrite, each ended by a signal.

Run in a process of its own: it loads what an export needs once, and forks for every export.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from exporter.__main__ import main as gemma_export
from exporter.cli import command as cli
from runtime_py.bundle.bundle import Bundle
from runtime_py.errors import RunError
from tests.end_to_end.fuzz import Case, save_case
from tests.exporter.tiny_models import Shape

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
MODELS = ("one", "two")  # a bundle has the name of its model, which tells the new from the old


def main(folder: Path, num_exports: int, seed: int) -> None:
    """Write what was found to `folder`/found.json: {ends, wrong, duration_s}.

    Args:
        folder: an empty one, to work in.
        num_exports: that are ended, at moments that `seed` decides.
    """
    shape = Shape(layers="f", shared=0, vocab_size=48, hidden_size=16)
    save_case(Case(shape, False, torch.float32, False, False, seed), folder)
    for name in MODELS:
        shutil.copytree(folder / "target", folder / name)
    (folder / "place").mkdir()
    start = time.monotonic()
    cli.main(arguments(folder, "one"), standalone_mode=False)  # what it imports, no fork has to
    duration_s = time.monotonic() - start
    draw = random.Random(seed)
    ends, wrong, there = [], [], "one"
    for index in range(num_exports):
        number = SIGNALS[index % len(SIGNALS)]
        name = MODELS[there == "one"]
        moment_s = draw.uniform(0, duration_s)
        found = end_export(folder, name, number, moment_s)
        ends.append((number.name, round(moment_s / duration_s, 2), found["code"], found["bundle"]))
        wrong += [f"{ends[-1]}: {what}" for what in look(found, number, {there, name})]
        there = found["bundle"]
    assert status(start_export(folder, there, overwrite=False)) == 1  # the next one, refused
    wrong += [f"it left {name}" for name in os.listdir(folder / "place") if name != "bundle"]
    found = {"ends": ends, "wrong": wrong, "duration_s": duration_s}
    (folder / "found.json").write_text(json.dumps(found))


def end_export(folder: Path, model: str, number: int, moment_s: float) -> dict:
    """What an export that gets a signal leaves."""
    pid = start_export(folder, model)
    time.sleep(moment_s)
    os.kill(pid, number)
    code = status(pid)
    try:
        opened = Bundle.open(folder / "place" / "bundle")
        opened.verify_checksums()
        bundle = opened.manifest.name
    except RunError as error:
        bundle = str(error)
    left = [name for name in os.listdir(folder / "place") if name != "bundle"]
    return {
        "code": code,
        "bundle": bundle,
        "left": left,
        "said": (folder / "said").read_text().splitlines(),
    }


def look(found: dict, number: int, names: set[str]) -> list[str]:
    wrong = []
    if found["bundle"] not in names:
        wrong.append(f"no whole bundle: {found['bundle']}")
    if number == signal.SIGKILL:
        # What this one left, and nothing of those before, or nothing: it had ended by itself.
        return wrong + [f"left {found['left']}"] * (len(found["left"]) > 1)
    if found["left"]:
        wrong.append(f"left {found['left']}")
    if found["code"] not in (0, 128 + number):
        wrong.append(f"exit code {found['code']}")
    if found["code"] and found["said"][-1] != "gemma-export: interrupted":
        wrong.append(f"said {found['said'][-5:]}")
    return wrong


def start_export(folder: Path, model: str, overwrite: bool = True) -> int:
    """Fork a process that exports; its id."""
    if pid := os.fork():
        return pid
    for number in SIGNALS[:-1]:  # a shell's background job, which may run the tests, ignores some
        signal.signal(number, signal.SIG_DFL)
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["gemma-export", *arguments(folder, model), *["--overwrite"][: int(overwrite)]]
    code = 1
    try:
        gemma_export()
    except SystemExit as error:
        code = error.code or 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def arguments(folder: Path, model: str) -> list[str]:
    options = ["--target", "desktop", "--runtime", "onnx", "--quantize", "float32"]
    options += ["--context", "96", "--no-drafter", "--no-check"]
    options += ["--prompts", str(folder / "prompts.jsonl"), "--model", str(folder / model)]
    return [*options, "--output", str(folder / "place" / "bundle")]


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
