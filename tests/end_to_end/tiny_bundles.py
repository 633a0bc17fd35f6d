"""Exports the tiny model with every recipe for every runtime, in one process of its own.

What does not depend on the recipe is done once: what the original says is recorded once, and
LiteRT's graphs, which get their weights later, are converted once.
"""

import importlib
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from exporter import pipeline
from exporter.cli import command as cli
from exporter.config import load_size
from exporter.lower.litert.skeleton import Signature
from exporter.original.record import Recorded
from runtime_py.backends.load import BACKENDS

RECIPES = ("float32", "int8", "int4")
RUNTIMES = tuple(BACKENDS)
STEP = 7  # every seventh of the model's prompts is recorded: texts and chats


def main(folder: Path) -> None:
    """Make `folder`/RECIPE, one after the other; each appears when it is whole."""
    prompts = write_prompts(folder)
    with tempfile.TemporaryDirectory() as scratch:
        pipeline.record = Once(pipeline.record)
        litert = importlib.import_module("exporter.lower.litert.lower")  # its package hides it
        litert.convert = ConvertedOnce(litert.convert, Path(scratch))
        for recipe in RECIPES:
            cli.main(arguments(folder / recipe, recipe, prompts), standalone_mode=False)


def write_prompts(folder: Path) -> Path:
    """Some of the tiny model's prompts; the export adds a long one."""
    lines = load_size("tiny").prompts.read_text(encoding="utf-8").splitlines(keepends=True)
    path = folder / "prompts.jsonl"
    path.write_text("".join(lines[::STEP]), encoding="utf-8")
    return path


def arguments(output: Path, recipe: str, prompts: Path) -> list[str]:
    runtimes = [option for runtime in RUNTIMES for option in ("--runtime", runtime)]
    options = ["--target", "raspberry-pi", "--size", "tiny", "--quantize", recipe, *runtimes]
    return [*options, "--prompts", str(prompts), "--output", str(output), "--no-check"]


class Once:
    """What the first call returned, for every call."""

    def __init__(self, record) -> None:
        self._record = record
        self._recorded: Recorded | None = None

    def __call__(self, *arguments) -> Recorded:
        self._recorded = self._recorded or self._record(*arguments)
        return self._recorded


class ConvertedOnce:
    """A copy of the first file of that name: files have no weights yet."""

    def __init__(self, convert, folder: Path) -> None:
        self._convert, self._folder = convert, folder
        self._names: dict[str, list[str]] = {}

    def __call__(
        self, signatures: Sequence[Signature], weights: Mapping[str, nn.Parameter], out: Path
    ) -> list[str]:
        if out.name in self._names:
            shutil.copy(self._folder / out.name, out)
        else:
            self._names[out.name] = self._convert(signatures, weights, out)
            shutil.copy(out, self._folder)
        return self._names[out.name]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
