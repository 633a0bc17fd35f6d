"""What the benchmarks run on: the tiny model's bundles and stacks of E2B's widths, made once."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.config import load_size

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "gemma4-tiny"
RECIPES = ("float32", "int8", "int4")
MODEL_FILES = {"executorch": "model.pte", "onnx": "model.fill.onnx"}  # by route


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """What to lower a stack to."""

    recipe: str
    prefill_lengths: tuple[int, ...] = (128,)
    verify_widths: tuple[int, ...] = (2, 4, 8)
    cache_length: int = 2048
    route: str = "ours"  # see export_route

    @property
    def name(self) -> str:
        lengths = "-".join(map(str, (*self.prefill_lengths, 0, *self.verify_widths)))
        return f"{self.route}-{self.recipe}-{lengths}-{self.cache_length}"

    @property
    def model(self) -> str:
        """The file that the runtime loads."""
        return MODEL_FILES.get(self.route, "model.litertlm")


class Work:
    """A folder of models, each in a place of its own for the sources it was made by."""

    def __init__(self) -> None:
        self.folder = ROOT / "tests" / "benchmarks" / ".work"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.weight_caches = self.folder / "weight_caches"

    def tiny_bundle(self, recipe: str, runtime: str = "litert") -> Path:
        """The tiny model's bundle."""
        sources = _digest("exporter", "models/gemma4-tiny/target", "models/gemma4-tiny/drafter")
        out = self.folder / f"tiny-{runtime}-{recipe}-{sources}"
        if not out.is_dir():
            run_module("exporter", *tiny_options(recipe, out, runtime))
        return out

    def stack(self, num_layers: int = 6, vocab_size: int = 8192) -> Path:
        """The folder of a random target and drafter of E2B's widths."""
        sources = _digest("tests/make_checkpoint.py", "models/gemma4-tiny/target/tokenizer.json")
        out = self.folder / f"stack-{num_layers}-{vocab_size}-{sources}"
        if not (out / "made").exists():
            shutil.rmtree(out, ignore_errors=True)
            run_module(
                "tests.make_checkpoint",
                *("--size", "e2b-stack", "--layers", num_layers, "--vocab", vocab_size, out),
            )
            (out / "made").touch()
        return out

    def stack_bundle(self, num_layers: int, recipe: str, runtime: str) -> Path:
        """The bundle of a stack, recorded on two prompts."""
        pair = self.stack(num_layers)
        out = self.folder / f"{pair.name}-{runtime}-{recipe}-{_digest('exporter')}"
        if not out.is_dir():
            prompts = self.folder / "two_prompts.jsonl"
            lines = [json.dumps({"kind": "text", "text": text}) for text in text_prompts()[:2]]
            prompts.write_text("\n".join(lines), encoding="utf-8")
            run_module(
                "exporter",
                *("--target", "raspberry-pi", "--model", pair / "target", "--quantize", recipe),
                *("--drafter", pair / "drafter", "--runtime", runtime, "--prompts", prompts),
                *("--output", out, "--overwrite", "--no-check"),
            )
        return out

    def lowered(self, pair: Path, graphs: Graphs) -> Path:
        """The folder of a pair's model file, the .tflite files in it, and `weight_bytes`."""
        out = self.folder / f"{pair.name}-{graphs.name}-{_digest('exporter')}"
        if not (out / "made").exists():
            run_module("tests.benchmarks.export_route", *route_options(pair, graphs, out))
            (out / "made").touch()
        return out

    def model(self, pair: Path, graphs: Graphs) -> Path:
        """The file of a lowered pair that the runtime loads: of a stack, or of TINY."""
        return self.lowered(pair, graphs) / graphs.model


def tiny_options(recipe: str, out: Path, runtime: str = "litert") -> list[object]:
    """Of gemma-export, for the tiny model without the check."""
    return [
        *("--target", "raspberry-pi", "--size", "tiny", "--quantize", recipe),
        *("--runtime", runtime, "--output", out, "--overwrite", "--no-check"),
    ]


def route_options(pair: Path, graphs: Graphs, out: Path) -> list[object]:
    """Of tests.benchmarks.export_route; `pair` has the folders target and drafter."""
    return [pair, json.dumps(graphs.__dict__), out]


def run_module(module: str, *arguments: object) -> str:
    """`python -m module ...` in a process of its own, so that this one stays small: its stdout."""
    done = subprocess.run(
        python_command(module, arguments), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def python_command(module: str, arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def text_prompts() -> list[str]:
    """The plain texts among the tiny model's prompts."""
    lines = load_size("tiny").prompts.read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line) for line in lines]
    return [prompt["text"] for prompt in prompts if prompt["kind"] == "text"]


def num_threads() -> int:
    """For models large enough to need more than one."""
    return min(4, os.cpu_count() or 1)


def _digest(*places: str) -> str:
    """Changes with the sources and weights in those files and folders."""
    digest = hashlib.sha256()
    for place in map(ROOT.joinpath, places):
        paths = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in paths:
            if path.is_file() and path.suffix in (".py", ".toml", ".json", ".safetensors"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
