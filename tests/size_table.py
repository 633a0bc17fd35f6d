"""docs/sizes.md: which size runs on which runtime with which recipe, from data and refusals.

    python -m tests.size_table     # writes it again, after a benchmark or a refusal has changed

Nothing in it is written by hand: the runtimes' own refusals are asked, and the results of
tests.benchmarks.full_size and tests.benchmarks.small_sizes are read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import click

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.config import known_recipes, load_size
from exporter.errors import ExportError
from exporter.pipeline import LOWERINGS
from exporter.quantize import DRAFTER_PREFIX, WeightType, load_recipe, plan
from runtime_py.inspection.memory import memory_of, memory_text, total_bytes
from runtime_py.inspection.sizes import known_sizes as device_sizes
from tests.benchmarks.full_size import undisturbed_s
from tests.benchmarks.memory import measured as measured_mb
from tests.benchmarks.memory import size_work
from tests.benchmarks.record import RESULTS
from tests.make_checkpoint import SIZES
from tests.virtual import virtual_pair

OUT = Path(__file__).parents[1] / "docs" / "sizes.md"
MODELS = ("tiny", "e2b", "e4b", "12b", "26b-a4b", "31b")
RECIPES = ("float32", "float16", "int8", "int4", "int4-groups", "mobile")
CHECKED, RUNS, FAILS, UNTRIED = "checked here", "runs, not checked", "fails", "not tried"
CONTEXT = 4096
SMALL = "¹"  # of cells whose family was checked at small widths only
HEAD = """\
# Sizes

`--size` names a model with its drafter and brings both from the hub:

| `--size` | target and drafter | weights of the text model | download, bfloat16 |
| --- | --- | --- | --- |
| `tiny` | in `models/` | 5.5 M | none |
| `e2b` | google/gemma-4-E2B-it, …-assistant | 4.6 B | 9.3 GB |
| `e4b` | google/gemma-4-E4B-it, …-assistant | 7.5 B | 14.9 GB |
| `12b` | google/gemma-4-12B-it, …-assistant | 11.9 B | 23.8 GB |
| `26b-a4b`, on ONNX only | google/gemma-4-26B-A4B-it, …-assistant | 25.2 B | 50.5 GB |
| `31b` | google/gemma-4-31B-it, …-assistant | 30.7 B | 61.4 GB |

The weights are counted from the configurations. A download also brings the vision and audio \
weights that are in the same files. The text model is what is exported.

In short: every size can be exported for every runtime with every [recipe](recipes.md), except \
that LiteRT has no groups of four-bit weights, ExecuTorch has neither 16 nor 2 bits, and 26B-A4B \
runs on ONNX only. What was checked at full size is bold below. An export to LiteRT or ONNX needs \
a few GB of memory, whatever the size; one to ExecuTorch holds all weights, a byte each. What each \
size needs on a device is [below](#memory-on-a-device).

## What was checked

| word | what it takes |
| --- | --- |
| checked here | a checkpoint of this size was exported, and `gemma-run check` passed on the \
bundle: its weights are random, with the true configuration (`tests/make_checkpoint.py`), those of \
`tiny` are trained. *N of M layers*: at the true widths with fewer layers, for want of disk |
| runs, not checked{small} | nothing refuses it, and the same family passed the check with this \
runtime and recipe at small widths (4 layers, hidden 64; all its kinds of layers, heads, tables \
and experts): `tests/benchmarks/small_sizes.py` |
| refused | `gemma-export` says no before any work; the letter is the reason below |

No published checkpoint was downloaded: all this was written without network.

`python -m tests.size_table` writes this page; a test compares.
"""


@dataclass
class Table:
    """The cells, and the reasons that they refer to."""

    full: Mapping[str, Any]  # the cells of full_size.json
    small: Mapping[str, Any]  # the cells of small_sizes.json
    reasons: list[str] = field(default_factory=list)

    def row(self, size: str, runtime: str) -> str:
        cells = [self.cell(size, runtime, recipe) for recipe in RECIPES]
        return f"| `{size}` | {runtime} | {' | '.join(cells)} |"

    def cell(self, size: str, runtime: str, recipe: str) -> str:
        """One word, and what it needs beside it."""
        if refusal := refused(size, runtime, recipe):
            if refusal not in self.reasons:
                self.reasons.append(refusal)
            return f"refused ({chr(ord('a') + self.reasons.index(refusal))})"
        if found := self._largest(size, runtime, recipe):
            passed, layers = found["check"]["report"]["passed"], found["layers"]
            whole = SIZES[size].num_layers
            part = "" if layers == whole else f", {layers} of {whole} layers"
            return f"**{CHECKED}**{part}" if passed else f"{FAILS}{part}"
        small = self.small.get(size, {}).get(runtime, {}).get(recipe)
        if small is None:
            return UNTRIED
        if not small.get("passed"):
            return FAILS
        return f"**{CHECKED}**" if size == "tiny" else RUNS + SMALL

    def _largest(self, size: str, runtime: str, recipe: str) -> Mapping[str, Any] | None:
        """Of what was checked at true widths, what has the most layers."""
        wanted = (size, runtime, recipe)
        found = [
            cell
            for cell in self.full.values()
            if (cell["size"], cell["runtime"], cell["recipe"]) == wanted
            and size in SIZES
            and "report" in cell.get("check", {})
        ]
        return max(found, key=lambda cell: int(cell["layers"]), default=None)


def refused(size: str, runtime: str, recipe_name: str) -> str | None:
    """Why the runtime does not take the size with the recipe: what its own code says."""
    try:
        LOWERINGS[runtime].check(_types(size, recipe_name))  # type: ignore[index]
    except ExportError as error:
        return str(error).partition(": ")[2].partition(";")[0]
    return None


@cache
def _types(size: str, recipe_name: str) -> Mapping[str, WeightType]:
    recipe = load_recipe(recipe_name)
    target, drafter = _pair(size)
    drafter_types = plan(drafter, recipe, DRAFTER_PREFIX)
    return plan(target, recipe) | {DRAFTER_PREFIX + n: kind for n, kind in drafter_types.items()}


@cache
def _pair(size: str) -> tuple[Any, Any]:
    """Target and drafter, without weights where the size is not ours."""
    if size != "tiny":
        return virtual_pair(size)
    source = load_size(size)
    assert isinstance(source.model, Path)
    assert isinstance(source.drafter, Path)
    target = read_checkpoint(source.model)
    return target, read_drafter(source.drafter, target)


def generate() -> str:
    """The page."""
    assert sorted(RECIPES) == known_recipes()
    table = Table(_cells("full_size"), _cells("small_sizes"))
    rows = [table.row(size, runtime) for size in MODELS for runtime in LOWERINGS]
    lines = [
        HEAD.format(small=SMALL),
        *_header("size", "runtime", *RECIPES),
        *rows,
        "",
        *(f"- ({chr(ord('a') + i)}) {reason}" for i, reason in enumerate(table.reasons)),
        *_device_memory(),
        *_measurements(table.full),
    ]
    return "\n".join(lines) + "\n"


def _device_memory() -> list[str]:
    """What each size needs to run, as every command says."""
    lines = [
        "",
        "## Memory on a device",
        "",
        f"While it generates, with a full context of {CONTEXT} tokens: what `gemma-export`, "
        "`inspect` and `doctor` say. What is in it: "
        "[what fits](raspberry-pi.md#what-fits).",
        "",
        *_header("size, recipe", *LOWERINGS),
    ]
    for size in device_sizes():
        for recipe in size.recipes:
            cells = [
                memory_text(size.need_bytes(recipe, CONTEXT, name))
                if size.runs_on(name, recipe)
                else ""
                for name in LOWERINGS
            ]
            lines.append(f"| `{size.name}`, {recipe} | {' | '.join(cells)} |")
    return lines


def _measurements(cells: Mapping[str, Any]) -> list[str]:
    """What the exports at true widths took."""
    rows = [
        _measured(cell) for _, cell in sorted(cells.items()) if "seconds" in cell.get("export", {})
    ]
    if not rows:
        return []
    columns = ("export", "time", "peak MB", "bundle MB", "÷ weights", "check", "generating, MB")
    return [
        "",
        "## Measured",
        "",
        "By `tests/benchmarks/full_size.py`, on two cores of a shared machine, with random "
        "weights: nothing here says how good or how fast MTP is.",
        "",
        "- In brackets: what the export had foreseen, divided by what was measured.",
        "- Times with brackets are those of an idle machine: processor time, corrected by the "
        "speed that was measured meanwhile.",
        "- *Generating* is the resident memory of a process that generates 32 tokens after each "
        "of two prompts, plain and with drafts, LiteRT with its weight cache written. In brackets: "
        "what `gemma-export`, `inspect` and `doctor` say, divided by that. They count the KV rows "
        "of a full context, and a tokenizer, which this process did not load.",
        "- Of tables that rows are looked up in, 5 to 52 % were resident, depending on how many "
        "pages the kernel maps with a row; the model counts a fifth.",
        "",
        *_header(*columns),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _measured(cell: Mapping[str, Any]) -> Sequence[str]:
    export = cell["export"]
    foreseen = dict(export.get("estimate / measured", {}))
    seconds = export["seconds"]
    if "speed" in export:
        seconds = undisturbed_s(export)
    else:
        foreseen.pop("seconds", None)
    report = cell.get("check", {}).get("report")
    verdict = "; ".join(report["failures"]) or "passed" if report else ""

    def figure(name: str, text: str) -> str:
        return f"{text} ({foreseen[name]:.2f})" if name in foreseen else text

    return (
        f"{cell['size']}, {cell['layers']} layers, {cell['runtime']} {cell['recipe']}",
        figure("seconds", f"{seconds / 60:.1f} min"),
        figure("peak MB", f"{export['peak MB']:.0f}"),
        figure("bundle MB", f"{export['bundle MB']:.0f}"),
        f"{export['bundle / weights']:.3f}",
        verdict,
        _generating(cell),
    )


def _generating(cell: Mapping[str, Any]) -> str:
    """Megabytes measured, and the model's by them."""
    moments = measured_mb(cell)
    if moments is None:
        return ""
    generating = sum(list(moments.values())[-1].values())
    contents = size_work(cell).contents(cell["runtime"])
    model = total_bytes(memory_of(cell["runtime"], contents)) / 1e6
    return f"{generating:.0f} ({model / generating:.2f})"


def _header(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]


def _cells(benchmark: str) -> Mapping[str, Any]:
    path = RESULTS / f"{benchmark}.json"
    if not path.exists():
        return {}
    cells: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


@click.command()
def main() -> None:
    """Write docs/sizes.md."""
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(generate(), encoding="utf-8")
    click.echo(OUT)


if __name__ == "__main__":
    main()
