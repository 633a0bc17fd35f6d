"""Export, check and run random checkpoints of the true sizes, one cell (size, runtime) at a time.

    python -m tests.benchmarks.full_size --size e2b --runtime litert
    python -m tests.benchmarks.full_size --size 31b --runtime litert --layers 6 --steps export,check

The checkpoint is made where it is not there: WORK/e2b, or WORK/31b-6 with 6 layers. A run replaces
only the steps of its cell that it makes, so that cells and steps can be made one by one.
"""

import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from exporter.config import GraphShapes, load_size
from runtime_py.bench.official import OfficialEngine, can_run
from runtime_py.bundle.bundle import Bundle
from runtime_py.errors import RunError
from tests.benchmarks.inputs import TINY, Work, num_threads, run_module
from tests.benchmarks.record import RESULTS, TOOLS, commit, describe_machine, versions
from tests.benchmarks.watch import PEAK, SPEED, Cost, Sampler, Watch, used_mb, watched

RUNTIMES = ("litert", "executorch", "onnx")
OFFICIAL_TOKENS = 32
SETTINGS = {
    "checkpoint": "random weights of the true configuration, bf16, with its drafter "
    "(tests/make_checkpoint.py); fewer layers where `layers` says so",
    "export": "gemma-export --no-check, from the start of Python to the bundle; stage s: until the "
    "stage's line in the log; estimate: what it printed before it began, by what was measured; "
    "seconds by those of the processor, where they are fewer, times its speed",
    "speed": SPEED,
    "bundle / weights": "all files of the bundle by the weights alone, as the recipe stores them "
    "(the log's `quantize` lines, with their scales)",
    "peak": PEAK,
    "disk": "the most that lay in the folder of the bundle while it was made",
    "memory": "RssAnon, RssFile and RssShmem of a process that generates and does nothing else, "
    "its imports included; LiteRT with its weight cache at the first load (which writes it) and at "
    "the second, with the packed weights in memory, and without",
    "official": "LiteRT-LM on the same file, with its own benchmark clock; peak of its process",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured, and where."""

    size: str
    runtime: str
    recipe: str
    device: str
    layers: int | None
    work: Path

    @property
    def model(self) -> str:
        return self.size if self.layers is None else f"{self.size}-{self.layers}"

    @property
    def checkpoint(self) -> Path:
        return TINY if self.size == "tiny" else self.work / self.model

    @property
    def source(self) -> tuple[object, ...]:
        """As options of gemma-export."""
        if self.size == "tiny":
            return ("--size", self.size)
        target, drafter = self.checkpoint / "target", self.checkpoint / "drafter"
        return ("--model", target, "--drafter", drafter)

    @property
    def place(self) -> Path:
        """Holds the bundle, and what the steps write for a while."""
        return self.work / f"{self.model}-{self.runtime}-{self.recipe}"

    @property
    def bundle(self) -> Path:
        return self.place / "bundle"

    @property
    def caches(self) -> Path:
        """Of packed weights; emptied when they are to be made again."""
        return self.place / "caches"

    @property
    def num_layers(self) -> int:
        config = json.loads((self.checkpoint / "target" / "config.json").read_text())
        return int(config["num_hidden_layers"])

    @property
    def key(self) -> str:
        return f"{self.size} {self.runtime} {self.recipe} {self.num_layers}"


def make_checkpoint(cell: Cell) -> None:
    if cell.checkpoint.is_dir():
        return
    draft = cell.checkpoint.with_suffix(".partial")
    shutil.rmtree(draft, ignore_errors=True)
    layers = () if cell.layers is None else ("--layers", cell.layers)
    run_module("tests.make_checkpoint", "--size", cell.size, *layers, draft)
    draft.rename(cell.checkpoint)


def export(cell: Cell) -> dict[str, Any]:
    """The whole export but its check."""
    shutil.rmtree(cell.place, ignore_errors=True)
    cell.place.mkdir(parents=True)
    options = (
        *("--target", cell.device, *cell.source),
        *("--runtime", cell.runtime, "--quantize", cell.recipe),
        *("--output", cell.bundle, "--no-check"),
    )
    # What the tools write beside the bundle counts, too.
    watch = Watch(folder=cell.place, environment={"TMPDIR": str(cell.place)})
    cost = watched("exporter", options, watch)
    found = _figures(cost) | {
        "speed": _rounded(cost.speed),
        "disk MB": _rounded(cost.disk_mb),
        "bundle MB": _rounded(used_mb(cell.bundle)),
        "checkpoint MB": _rounded(used_mb(cell.checkpoint)),
        "stage s": {stage: _rounded(s) for stage, s in cost.stages.items()},
        "stage CPU s": {stage: _rounded(s) for stage, s in cost.stage_cpu_s.items()},
        "stage peak MB": {stage: _rounded(mb) for stage, mb in cost.stage_peaks_mb.items()},
    }
    weights = sum(map(float, re.findall(r"^quantize .*?([\d.]+) MB", cost.stderr, re.M)))
    if weights:
        ratio = _rounded(found["bundle MB"] / weights)
        found |= {"weights MB": weights, "bundle / weights": ratio}
    if estimate := read_estimate(cost.stderr):
        found["estimate"] = estimate
        measured = found | {"seconds": undisturbed_s(found)}
        found["estimate / measured"] = {
            name: _rounded(value / measured[name])
            for name, value in estimate.items()
            if name in measured
        }
    bundle = Bundle.open(cell.bundle)
    found["context"] = bundle.manifest.model.context_length
    found["verify widths"] = GraphShapes.verify_widths
    tiny = cell.size == "tiny"
    found["prefill lengths"] = (load_size("tiny") if tiny else GraphShapes).prefill_lengths
    found["prompt lengths"] = [len(ids) for ids in bundle.reference().prompt_ids]
    return found


def undisturbed_s(export: Mapping[str, Any]) -> float:
    """What an export would have taken, had the machine had nothing else to do."""
    return float(min(export["seconds"], export["CPU s"]) * export["speed"])


def read_estimate(log: str) -> dict[str, float]:
    """The figures of an export's `estimate` lines, by the names that the measured ones have."""
    patterns = {
        "seconds": r"([\d.]+) s\b",
        "peak MB": r"([\d.]+) MB of memory",
        "disk MB": r"([\d.]+) MB of disk",
        "bundle MB": r"bundle of ([\d.]+) MB",
        "device MB": r"([\d.]+ [MG]B) of memory on the device",
    }
    text = "\n".join(re.findall(r"^estimate .*", log, re.M))
    found = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    return {name: _megabytes(match[1]) for name, match in found.items() if match}


def _megabytes(text: str) -> float:
    """Of "81", "81 MB" or "1.74 GB"; of seconds, those."""
    number, _, unit = text.partition(" ")
    return round(float(number) * (1000 if unit == "GB" else 1), 6)


def check(cell: Cell) -> dict[str, Any]:
    """What `gemma-run check` says; 1 is its verdict, no failure of this step."""
    _clear(cell.caches)
    environment = {"XDG_CACHE_HOME": str(cell.caches)}
    options = ("check", cell.bundle, "--runtime", cell.runtime, "--json")
    watch = Watch(environment=environment, exit_codes=(0, 1))
    cost = watched("runtime_py", options, watch)
    if not cost.stdout:
        raise RuntimeError(cost.stderr)
    report = json.loads(cost.stdout)
    for name in ("original", "speculative"):
        report[name]["differences"] = [
            f"prompt {one['prompt']}, token {one['token']}, margin {one['margin']:.3g}"
            for one in report[name]["differences"]
        ]
    return _figures(cost) | {"report": report}


def memory(cell: Cell) -> dict[str, Any]:
    """Resident while generating, and how fast; the weight cache on, off and in memory."""
    ways = {"as it is": cell.caches / "kept"}
    if cell.runtime == "litert":
        ways = {"first load": cell.caches / "kept", "second load": cell.caches / "kept"}
        ways |= {"packed in memory": Path("memory"), "without cache": Path("none")}
    _clear(cell.caches)
    found: dict[str, Any] = {}
    for way, weight_cache in ways.items():
        options = (cell.bundle, cell.runtime, num_threads(), weight_cache)
        try:
            cost = watched("tests.benchmarks.generating", options)
            found[way] = _figures(cost) | json.loads(cost.stdout.splitlines()[-1])
        except RuntimeError as error:
            found[way] = {"failed": _one_line(error)}
    if cell.runtime == "litert":
        found["weight cache MB"] = _rounded(used_mb(cell.caches / "kept"))
    return found


def official(cell: Cell) -> dict[str, Any]:
    """Google's runtime on the same file, with its drafter and without."""
    if cell.runtime != "litert":
        raise RuntimeError("it runs .litertlm files only")
    bundle = Bundle.open(cell.bundle)
    model = bundle.model_path("litert")
    if not can_run(model):
        raise RuntimeError("litert-lm-api is not installed")
    tokenizer = bundle.tokenizer()
    prompts = [tokenizer.text_after_bos(ids.tolist()) for ids in bundle.reference().prompt_ids[:2]]
    found: dict[str, Any] = {}
    texts = []
    for name, mtp in (("MTP", True), ("plain", False)):
        engine = OfficialEngine(model, mtp=mtp, num_threads=num_threads())
        sampler = Sampler(engine.pid)
        sampler.start()
        try:
            runs = [engine.generate(prompt, OFFICIAL_TOKENS) for prompt in prompts]
        finally:
            accepted = engine.close()
        texts.append([run.text for run in runs])
        found[name] = {
            "tokens/s": [_rounded(run.tokens_per_s) for run in runs],
            "tokens": [run.num_tokens for run in runs],
            "drafts accepted (its log)": accepted,
            "peak MB": _rounded(sampler.peak_mb),
            "peak anonymous MB": _rounded(sampler.peak_anonymous_mb),
        }
    equal = sum(a.startswith(b) or b.startswith(a) for a, b in zip(*texts, strict=True))
    return found | {"texts equal with MTP and without": f"{equal} of {len(prompts)}"}


STEPS: Mapping[str, Callable[[Cell], dict[str, Any]]] = {
    "export": export,
    "check": check,
    "memory": memory,
    "official": official,
}


def measure(cell: Cell, steps: list[str], output: Path) -> None:
    """Run the steps and put what they found into the cell's place in the file."""
    make_checkpoint(cell)
    for step in steps:
        about = {"date": _now(), "commit": commit(), "load before": round(os.getloadavg()[0], 2)}
        try:
            found = STEPS[step](cell)
        except (RuntimeError, RunError, OSError) as error:
            found = {"failed": _one_line(error)}
        record(output, cell, step, about | found)
        click.echo(f"{cell.key}: {step}: {json.dumps(found, indent=1)}")


def record(output: Path, cell: Cell, step: str, found: dict[str, Any]) -> None:
    values: dict[str, Any] = {"benchmark": "full_size", "settings": SETTINGS, "cells": {}}
    if output.exists():
        values["cells"] = json.loads(output.read_text(encoding="utf-8"))["cells"]
    about = describe_machine()
    del about["load_before"]  # every step has its own
    values["cells"].setdefault(cell.key, {}).update(
        {
            "size": cell.size,
            "runtime": cell.runtime,
            "recipe": cell.recipe,
            "layers": cell.num_layers,
            "target": cell.device,
            "machine": about,
            "tools": {"python": platform.python_version()} | versions(TOOLS),
            step: found,
        }
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    partial.replace(output)


def _figures(cost: Cost) -> dict[str, Any]:
    return {
        "seconds": _rounded(cost.seconds),
        "CPU s": _rounded(cost.cpu_s),
        "peak MB": _rounded(cost.peak_mb),
        "peak anonymous MB": _rounded(cost.peak_anonymous_mb),
    }


def _one_line(error: Exception) -> str:
    """The last line said, without the places of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"/\S*/", "", lines[-1] if lines else repr(error))


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _steps(_context: click.Context, _option: click.Parameter, text: str) -> list[str]:
    steps = text.split(",")
    if unknown := sorted(set(steps) - set(STEPS)):
        raise click.BadParameter(f"{', '.join(unknown)}; known are {', '.join(STEPS)}")
    return steps


@click.command()
@click.option("--size", required=True, help="Of tests.make_checkpoint, or tiny.")
@click.option("--runtime", type=click.Choice(RUNTIMES), required=True)
@click.option("--recipe", default="int4", show_default=True)
@click.option("--layers", type=int, help="Instead of the size's own number.")
@click.option("--target", "device", default="android", show_default=True, help="Of gemma-export.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of gigabytes.")
@click.option("--steps", callback=_steps, default=",".join(STEPS), show_default=True)
@click.option("--keep", is_flag=True, help="Leave checkpoint and bundle there.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "full_size.json")
def main(work: Path | None, steps: list[str], keep: bool, output: Path, **choices: Any) -> None:
    """Measure one cell; a bundle that is there is used where `export` is not among the steps."""
    folder = (work or Work().folder / "full_size").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder)  # a disk with room, which /tmp need not be
    cell = Cell(work=folder, **choices)
    was_there = cell.checkpoint.is_dir()
    if cell.runtime != "litert":
        steps = [step for step in steps if step != "official"]  # which loads nothing else
    measure(cell, steps, output)
    shutil.rmtree(cell.caches, ignore_errors=True)
    if not keep:
        shutil.rmtree(cell.place, ignore_errors=True)
        if not was_there:
            shutil.rmtree(cell.checkpoint)


if __name__ == "__main__":
    main()
