"""Every published family at small widths, on every runtime with every recipe: exported, checked.

    python -m tests.benchmarks.small_sizes [--family 12b] [--runtime litert]

A family is its published configuration with four layers and few weights, random ones that lose
nothing in the recipe's bits; `tests.size_table` reads what is found. A run replaces only the cells
that it makes.
"""

import json
import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch

from exporter.config import ExportConfig, GraphShapes, ModelSource, known_recipes, load_size
from exporter.errors import ExportError
from exporter.pipeline import export
from runtime_py.backends import SessionOptions
from runtime_py.backends.load import BACKENDS
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.check.replay import check_bundle
from runtime_py.errors import RunError
from tests import make_checkpoint
from tests.benchmarks.record import RESULTS, TOOLS, commit, describe_machine, versions
from tests.make_checkpoint import SIZES, Size

TINY = "tiny"  # the trained model, as it is
FAMILIES = (TINY, "e2b", "e4b", "12b", "26b-a4b", "31b")
OUTPUT = RESULTS / "small_sizes.json"
SHAPES = GraphShapes(prefill_lengths=(16,), verify_widths=(4,), cache_length=128)
NUM_PROMPTS = 2
PROMPTS = "prompts.jsonl"


def small(family: str) -> Size:
    """The family with few of everything but kinds."""
    size = SIZES[family]
    return replace(
        size,
        num_layers=4,
        num_shared=2 if size.num_shared else 0,
        period=2,
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        num_kv_heads=min(2, size.num_kv_heads),
        num_global_kv_heads=size.num_global_kv_heads and 1,
        head_dim=32,
        window=24,
        per_layer_size=32 if size.per_layer_size else 0,
        num_experts=8 if size.num_experts else 0,
        expert_size=32 if size.num_experts else 0,
        drafter=replace(size.drafter, hidden_size=32, intermediate_size=64, num_heads=4),
    )


def examine(family: str, runtime: RuntimeName, recipe: str, folder: Path) -> dict[str, Any]:
    """Export and check, and say what came of it."""
    if family == TINY:
        source = load_size(TINY)
    else:
        source = ModelSource(
            name=family,
            model=folder / "target",
            drafter=folder / "drafter",
            prompts=folder / PROMPTS,
        )
    config = ExportConfig(
        source=source,
        output=folder / f"{runtime}-{recipe}",
        overwrite=False,
        device="desktop",
        runtimes=(runtime,),
        recipe=recipe,
        shapes=SHAPES,
        draft_length=3,
    )
    try:
        export(config)
        bundle = Bundle.open(config.output)
        report = check_bundle(bundle, runtime, SessionOptions(num_threads=1))
    except ExportError as error:
        return {"refused": str(error)}
    except RunError as error:
        return {"failed": str(error)}
    finally:
        shutil.rmtree(config.output, ignore_errors=True)
    return {
        "passed": report.passed,
        "tokens equal to the original's, its text given": round(float(report.agreement), 4),
        "logit error": float(f"{report.logit_error:.2g}"),
        "speculative = plain": report.speculative.equal,
        **({"failures": report.failures} if report.failures else {}),
    }


def two_bits(num_rows: int, width: int, random: np.random.Generator) -> torch.Tensor:
    """Rows of length about 1, each a scale times -2, -1, 0 and 1."""
    normal = random.standard_normal((num_rows, width), np.float32)
    integers = torch.from_numpy(normal).round_().clamp_(-2, 1)
    integers[:, 0] = -2
    return (integers / 2 ** round(math.log2(math.sqrt(width)))).to(torch.bfloat16)


def make_pair(family: str, recipe: str, folder: Path) -> None:
    """A checkpoint, and some prompts."""
    rows = two_bits if recipe == "mobile" else make_checkpoint._matrix_rows
    with patch.object(make_checkpoint, "_matrix_rows", rows):
        make_checkpoint.make_pair(folder, small(family), seed=0)
    lines = load_size("tiny").prompts.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / PROMPTS).write_text("".join(lines[:NUM_PROMPTS]), encoding="utf-8")


def record(output: Path, family: str, runtime: str, recipe: str, found: dict[str, Any]) -> None:
    values: dict[str, Any] = {"cells": {}}
    if output.exists():
        values = json.loads(output.read_text(encoding="utf-8"))
    values["cells"].setdefault(family, {}).setdefault(runtime, {})[recipe] = found
    about = {
        "benchmark": "small_sizes",
        "settings": {
            "families": "4 layers, hidden 64, vocabulary 4096, 2 prompts x 64 tokens; tiny as it "
            "is; all with K = 3 and 128 KV rows",
            "weights": "random integers times a scale: of 4 bits, of 2 for the recipe mobile",
        },
        "commit": commit(),
        "machine": describe_machine(),
        "tools": versions(TOOLS),
    }
    output.write_text(json.dumps(about | {"cells": values["cells"]}, indent=1) + "\n")


@click.command()
@click.option("--family", "families", type=click.Choice(FAMILIES), multiple=True)
@click.option("--runtime", "runtimes", type=click.Choice(sorted(BACKENDS)), multiple=True)
@click.option("--recipe", "recipes", type=click.Choice(known_recipes()), multiple=True)
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT)
def main(
    families: tuple[str, ...],
    runtimes: tuple[RuntimeName, ...],
    recipes: tuple[str, ...],
    output: Path,
) -> None:
    """Export and check; all of them take half an hour."""
    for family in families or FAMILIES:
        for recipe in recipes or known_recipes():
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "pair"
                if family != TINY:
                    make_pair(family, recipe, folder)
                for runtime in runtimes or BACKENDS:
                    found = examine(family, runtime, recipe, folder)
                    record(output, family, runtime, recipe, found)
                    click.echo(f"{family} {runtime} {recipe}: {found}")


if __name__ == "__main__":
    main()
