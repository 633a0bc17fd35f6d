"""Measure what the memory model needs, and write its factors: runtime_py/inspection/factors.toml.

    python -m tests.benchmarks.memory --tiny litert int8     # a cell: the tiny model, generating
    python -m tests.benchmarks.memory --stack onnx mobile    # a cell: 4 layers of E2B's widths
    python -m tests.benchmarks.memory --tokenizer            # a cell: one as large as Gemma's
    python -m tests.benchmarks.memory                        # the factors, from the cells

The factors also come from runtimes.json (every runtime on the same 4 layers) and full_size.json
(true sizes): whoever measures those again runs the last line again. A test compares.
"""

import itertools
import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import click

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.config import GraphShapes, load_size
from exporter.estimate.work import Work, measure_work
from exporter.quantize import load_recipe
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.inspection.memory import FACTORS_FILE
from tests.benchmarks.candidates import ROUTES, STACK_LAYERS, STACK_ROWS
from tests.benchmarks.inputs import Graphs, num_threads, run_module
from tests.benchmarks.inputs import Work as Folder
from tests.benchmarks.record import RESULTS, TOOLS, commit, describe_machine, versions
from tests.benchmarks.resident import resident
from tests.virtual import virtual_pair

OUTPUT = RESULTS / "memory.json"
NAMES: Mapping[str, RuntimeName] = {"LiteRT": "litert", "ExecuTorch": "executorch", "ONNX": "onnx"}
STACK_VOCAB = 8192
MEASURED_KINDS = ("float32", "int8", "int4", "int4-groups")  # of runtimes.json
VOCAB_SIZE, NUM_MERGES = 262144, 514906  # Gemma's
LONGEST = 16  # letters of a made-up token
SETTINGS = {
    "tiny": "resident MB of tests.benchmarks.generating, imports included, its tokenizer left out",
    "tokenizer": f"{VOCAB_SIZE} made-up tokens and {NUM_MERGES} merges: MB that loading it adds",
    "stack": "MB that tests.benchmarks.resident finds; the weight cache is LiteRT's",
}

Cells = Mapping[str, Any]
Repacked = Mapping[RuntimeName, Mapping[str, float]]


def stack_work(recipe: str) -> Work:
    """What is in the stack of runtimes.json."""
    target, drafter = virtual_pair("e2b", STACK_LAYERS, STACK_VOCAB)
    shapes = GraphShapes(prefill_lengths=(128,), cache_length=STACK_ROWS)
    return measure_work(target, drafter, load_recipe(recipe), shapes, 0)


def size_work(cell: Mapping[str, Any]) -> Work:
    """What is in a bundle of full_size.json."""
    target, drafter = virtual_pair(cell["size"], cell["layers"])
    export = cell["export"]
    shapes = GraphShapes(
        prefill_lengths=tuple(export.get("prefill lengths", GraphShapes.prefill_lengths)),
        verify_widths=tuple(export.get("verify widths", GraphShapes.verify_widths)),
        cache_length=export["context"],
    )
    return measure_work(target, drafter, load_recipe(cell["recipe"]), shapes, 0)


def tiny_work(recipe: str) -> Work:
    """What is in the tiny model's bundle for a Raspberry Pi."""
    source = load_size("tiny")
    assert isinstance(source.model, Path)
    assert isinstance(source.drafter, Path)
    target = read_checkpoint(source.model)
    drafter = read_drafter(source.drafter, target)
    shapes = GraphShapes(prefill_lengths=source.prefill_lengths, cache_length=512)
    return measure_work(target, drafter, load_recipe(recipe), shapes, 0)


def measured(cell: Mapping[str, Any]) -> dict[str, dict[str, float]] | None:
    """Resident megabytes of a full-size cell by moment, LiteRT with its weight cache written."""
    memory = cell.get("memory", {})
    kept = memory.get("second load") or memory.get("as it is") or {}
    found: dict[str, dict[str, float]] | None = kept.get("resident MB")
    return found


def factors() -> str:
    """factors.toml."""
    cells, full, stack = read("memory"), read("full_size"), read("runtimes", "")
    repacked = {runtime: _repacked(name, stack, cells) for name, runtime in NAMES.items()}
    lines = [
        "# Measured: python -m tests.benchmarks.memory writes this file from the results.",
        f"tables_resident = {_tables_resident(repacked, full, cells)}",
        f"tokenizer_bytes_per_token = {cells['tokenizer']['MB'] * 1e6 / VOCAB_SIZE:.0f}",
    ]
    for runtime, kinds in repacked.items():
        layer = _graph_layer(runtime, kinds, full)
        base = _base(runtime, kinds, layer, cells)
        lines += ["", f"[{runtime}]", f"base_bytes = {base}", f"graph_layer_bytes = {layer}"]
        lines += [f"[{runtime}.repacked]"]
        lines += [f'"{kind}" = {value:.2f}' for kind, value in kinds.items()]
    return "\n".join(lines) + "\n"


def _repacked(name: str, stack: Cells, cells: Cells) -> dict[str, float]:
    """Resident over stored bytes, by type of weights.

    LiteRT packs into a file. The others pack into anonymous memory, and go on reading scales that
    lie in the mapped file; what else they need is what they have beside float32 weights, which
    they copy as they are.
    """
    packed = {recipe: _packed(name, recipe, stack, cells) for recipe in _recipes(name)}
    beside = 0.0
    if name != "LiteRT":
        beside = (
            packed["float32"] - sum(stack_work("float32").all_multiplied.by_type.values()) / 1e6
        )
    found: dict[str, float] = {}
    for recipe, size in packed.items():
        kinds = dict(stack_work(recipe).all_multiplied.by_type)
        known = sum(found[kind] * stored for kind, stored in kinds.items() if kind in found) / 1e6
        [new] = set(kinds) - set(found)
        found[new] = (size - beside - known) / (kinds[new] / 1e6)
    return found


def _recipes(name: str) -> tuple[str, ...]:
    """Each brings one more type of weights."""
    return {
        "LiteRT": ("float32", "float16", "int8", "int4", "mobile"),
        "ExecuTorch": ("float32", "int8", "int4", "int4-groups"),
        "ONNX": ("float32", "float16", "int8", "int4", "int4-groups", "mobile"),
    }[name]


def _packed(name: str, recipe: str, stack: Cells, cells: Cells) -> float:
    """Megabytes of the stack."""
    if recipe not in MEASURED_KINDS:
        cell = cells[f"stack {NAMES[name]} {recipe}"]
        if name == "LiteRT":
            return float(cell["weight cache MB"])
        anonymous, mapped = cell["anonymous MB"], cell["mapped MB"]
    elif name == "LiteRT":
        return float(stack["found"][f"{name} {recipe}: weight cache MB"])
    else:
        medians = stack["medians"]
        anonymous, mapped = (
            medians[f"{name} {recipe}: {kind} MB"] for kind in ("anonymous", "mapped")
        )
    files = stack["medians"][f"{name} float32: mapped MB"]
    return float(anonymous + max(0.0, mapped - files))


def _graph_layer(runtime: RuntimeName, repacked: Mapping[str, float], full: Cells) -> int:
    """What loading a true size takes beside the packed weights, for a layer in a graph."""
    found = []
    for cell in full.values():
        moments = measured(cell)
        if cell["runtime"] == runtime and moments:
            work = size_work(cell)
            loaded = moments["loaded"]["RssAnon"] - moments["imported"]["RssAnon"]
            if runtime != "litert":
                loaded -= _matrices_mb(work, repacked)
            found.append(max(0.0, loaded) * 1e6 / work.graph_layers[runtime])
    return _rounded(median(found))


def _base(runtime: RuntimeName, repacked: Mapping[str, float], layer: int, cells: Cells) -> int:
    """What the tiny model takes beside what the other factors say of it."""
    found = []
    for recipe, cell in _tiny(runtime, cells):
        work = tiny_work(recipe)
        rest = _matrices_mb(work, repacked) + work.kv_bytes / 1e6
        rest += layer * work.graph_layers[runtime] / 1e6
        found.append(cell["generating MB"] - rest)
    return _rounded(median(found) * 1e6)


def _matrices_mb(work: Work, repacked: Mapping[str, float]) -> float:
    return sum(repacked[kind] * size for kind, size in work.all_multiplied.by_type.items()) / 1e6


def _tables_resident(repacked: Repacked, full: Cells, cells: Cells) -> float:
    """Pages of mapped files that generating brings, beside packed weights and code, per table byte.

    A row brings the pages that the kernel maps with it: 64 KB, or 2 MB where the file was read or
    written in large pieces before. The shares lie between 0.05 and 0.52, hence a geometric mean.
    """
    shares = []
    for cell in full.values():
        moments, runtime = measured(cell), cell["runtime"]
        tables = size_work(cell).looked_up.size_bytes / 1e6
        if moments and tables:
            files = _more_files(moments) - cell["memory"].get("weight cache MB", 0)
            shares.append((files - _code(runtime, repacked[runtime], cells)) / tables)
    return round(geometric_mean(shares), 2)


def _code(runtime: RuntimeName, repacked: Mapping[str, float], cells: Cells) -> float:
    """Megabytes of libraries that generating brings: what the tiny model's files grow by."""
    found = []
    for recipe, cell in _tiny(runtime, cells):
        packed = _matrices_mb(tiny_work(recipe), repacked) if runtime == "litert" else 0.0
        found.append(_more_files(cell["resident MB"]) - packed)
    return median(found)


def _more_files(moments: Mapping[str, Mapping[str, float]]) -> float:
    return list(moments.values())[-1]["RssFile"] - moments["loaded"]["RssFile"]


def _tiny(runtime: RuntimeName, cells: Cells) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Recipe and cell."""
    for key, cell in cells.items():
        if key.startswith(f"tiny {runtime} "):
            yield key.split()[2], cell


def _rounded(num_bytes: float) -> int:
    """To 0.1 MB."""
    return round(num_bytes / 1e5) * 100_000


def read(benchmark: str, key: str = "cells") -> Any:
    """A part of a benchmark's results; all of them with the key ""."""
    path = RESULTS / f"{benchmark}.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": {}}
    return values[key] if key else values


def measure_tiny(runtime: str, recipe: str) -> dict[str, Any]:
    """The tiny model, generating; LiteRT's weight cache is written by the first of two runs."""
    folder = Folder()
    bundle = folder.tiny_bundle(recipe, runtime)
    return measure_bundle(bundle, runtime, folder.weight_caches)


def measure_bundle(bundle: Path, runtime: str, weight_caches: Path) -> dict[str, Any]:
    options = ("tests.benchmarks.generating", bundle, runtime, 1, weight_caches)
    said = [run_module(*options) for _ in range(2)]
    found = json.loads(said[-1].splitlines()[-1])["resident MB"]
    return {"resident MB": found, "generating MB": round(sum(list(found.values())[-1].values()), 1)}


def measure_stack(runtime: str, recipe: str) -> dict[str, Any]:
    """The stack in a recipe that runtimes.json has not."""
    folder = Folder()
    [route] = [route for name, route in ROUTES.items() if NAMES[name] == runtime]
    model = folder.model(folder.stack(STACK_LAYERS), Graphs(recipe=recipe, route=route))
    caches = model.with_name("weight_caches")
    for _ in range(2):
        found = resident(model, num_threads(), caches)
    cache_bytes = sum(path.stat().st_size for path in caches.glob("*"))
    return {
        "anonymous MB": round(found.anonymous, 1),
        "mapped MB": round(found.mapped, 1),
        "weight cache MB": round(cache_bytes / 1e6, 1),
    }


def measure_tokenizer() -> dict[str, Any]:
    """One as large as Gemma's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        write_tokenizer(path)
        return {"MB": float(run_module("tests.benchmarks.tokenizer_memory", path))}


def write_tokenizer(path: Path) -> None:
    """The tiny model's with its vocabulary grown by random merges."""
    source = load_size("tiny").model
    assert isinstance(source, Path)
    values = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    draw = random.Random(0)
    tokens = list(values["model"]["vocab"])
    known, merges = set(tokens), []
    while len(tokens) < VOCAB_SIZE:
        pair = [draw.choice(tokens), draw.choice(tokens)]
        token = "".join(pair)
        if token not in known and len(token) <= LONGEST and "<" not in token:
            known.add(token)
            tokens.append(token)
            merges.append(pair)
    ways = ([t[:cut], t[cut:]] for t in tokens for cut in range(1, len(t)))
    more = (way for way in ways if known.issuperset(way))
    merges += itertools.islice(more, NUM_MERGES - len(merges))
    values["model"] |= {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def record(key: str, found: Mapping[str, Any]) -> None:
    cells = dict(read("memory")) | {key: {"commit": commit(), **found}}
    about = {
        "benchmark": "memory",
        "settings": SETTINGS,
        "machine": describe_machine(),
        "tools": versions(TOOLS),
        "cells": cells,
    }
    OUTPUT.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


@click.command()
@click.option("--tiny", nargs=2, metavar="RUNTIME RECIPE", help="Measure the tiny model.")
@click.option("--stack", nargs=2, metavar="RUNTIME RECIPE", help="Measure the stack.")
@click.option("--tokenizer", is_flag=True, help="Measure a tokenizer as large as Gemma's.")
def main(tiny: tuple[str, str] | None, stack: tuple[str, str] | None, tokenizer: bool) -> None:
    """Measure a cell, or write factors.toml."""
    if tiny:
        record(" ".join(("tiny", *tiny)), measure_tiny(*tiny))
    if stack:
        record(" ".join(("stack", *stack)), measure_stack(*stack))
    if tokenizer:
        record("tokenizer", measure_tokenizer())
    if not (tiny or stack or tokenizer):
        FACTORS_FILE.write_text(factors(), encoding="utf-8")


if __name__ == "__main__":
    main()
