"""What a bundle of each known size holds and needs, counted from the true configurations.

    python -m tests.memory_budget   # rewrites inspection/sizes.toml and the table in the docs

Nothing is measured here: weights are counted as the recipes store them, KV rows as every runtime
keeps them in memory (float32; of sliding layers those near the window). `gemma-run doctor` reads
sizes.toml; tests/test_memory_budget.py compares.
"""

from collections.abc import Iterator
from pathlib import Path

from exporter.checkpoint.config import parse_drafter, parse_target
from exporter.config import DEVICES
from exporter.graph.drafter import Drafter
from exporter.graph.experts import is_stack
from exporter.graph.spec import KINDS, DrafterSpec, TargetSpec
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.graph.weights import expected_tensors
from exporter.quantize import load_recipe
from exporter.quantize.recipe import DRAFTER_PREFIX, Recipe, layer_of, size_bytes
from runtime_py.inspection.memory import SIZES_FILE, Size, Stored, known_sizes
from tests.make_checkpoint import SIZES, drafter_config, target_config

NAMES = ("e2b", "e4b", "12b", "26b-a4b", "31b")
RECIPES = ("int8", "int4", "mobile")
FLOAT_BYTES = 4
DOC = Path(__file__).parents[1] / "docs" / "raspberry-pi.md"
BEGIN, END = "<!-- python -m tests.memory_budget -->\n", "<!-- end -->\n"
CONTEXT = DEVICES["raspberry-pi"].context_length
BOARDS_GB = (2, 4, 8, 16)
SYSTEM_BYTES = 400_000_000  # what Raspberry Pi OS without a desktop may take; not measured by us


class _Checkpoint:
    """Names and shapes of one that is not there."""

    def __init__(self, spec: TargetSpec | DrafterSpec, modules: list) -> None:
        self.spec = spec
        self.shapes = expected_tensors(modules)

    def stored(self, recipe: Recipe, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Each tensor's name and bytes; scales are left out."""
        for name, shape in self.shapes.items():
            kind = recipe.weight_type(prefix + name, shape, layer_of(self, name))
            yield prefix + name, size_bytes(shape, kind)


def count(name: str) -> Size:
    """A size, by the configurations that tests/make_checkpoint.py has of it."""
    spec = parse_target(target_config(SIZES[name]), name)
    drafter_spec = parse_drafter(drafter_config(SIZES[name]), name, spec)
    modules = [Embedder(spec), Target(spec)]
    if spec.per_layer_size:
        modules.append(PerLayerEmbedder(spec))
    target = _Checkpoint(spec, modules)
    drafter = _Checkpoint(drafter_spec, [Drafter(drafter_spec)])
    row_bytes = dict.fromkeys(KINDS, 0)
    for layer in spec.kv_layers:
        row_bytes[layer.kind] += 2 * FLOAT_BYTES * layer.num_kv_heads * layer.head_dim
    recipes = {}
    for recipe_name in RECIPES:
        recipe = load_recipe(recipe_name)
        stored = [*target.stored(recipe), *drafter.stored(recipe, DRAFTER_PREFIX)]
        # The embedding is the head too: only the per-layer table is looked up and nothing else.
        looked_up = sum(size for name, size in stored if name.startswith("embed_tokens_per_layer"))
        total = sum(size for _, size in stored)
        recipes[recipe_name] = Stored(
            file_bytes=total,
            matrices_bytes=total - looked_up,
            experts_bytes=sum(size for name, size in stored if is_stack(name)),
        )
    return Size(
        name=name,
        runtime="litert" if all(layer.experts is None for layer in spec.layers) else "onnx",
        full_kv_bytes_per_token=row_bytes["full_attention"],
        sliding_kv_bytes_per_token=row_bytes["sliding_attention"],
        sliding_window=spec.sliding_window,
        recipes=recipes,
    )


def sizes_text(sizes: list[Size]) -> str:
    """sizes.toml."""
    lines = ["# Counted, not measured: python -m tests.memory_budget rewrites this file."]
    for size in sizes:
        lines += ["", f"[{size.name}]", f'runtime = "{size.runtime}"']
        lines += [f"full_kv_bytes_per_token = {size.full_kv_bytes_per_token}"]
        lines += [f"sliding_kv_bytes_per_token = {size.sliding_kv_bytes_per_token}"]
        lines += [f"sliding_window = {size.sliding_window}"]
        for recipe, stored in size.recipes.items():
            lines += [
                f"[{size.name}.recipes.{recipe}]",
                f"file_bytes = {stored.file_bytes}",
                f"matrices_bytes = {stored.matrices_bytes}",
                f"experts_bytes = {stored.experts_bytes}",
            ]
    return "\n".join(lines) + "\n"


def table() -> str:
    """The table of docs/raspberry-pi.md."""
    lines = [
        f"| size, recipe | weights in the bundle | of them read for every token | KV rows for "
        f"{CONTEXT} / 8192 / 32768 tokens | memory on LiteRT, {CONTEXT} tokens | a board of |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for size in known_sizes():
        for recipe, stored in size.recipes.items():
            need = size.need_bytes(recipe, CONTEXT)
            rows = [size.kv_bytes(length) for length in (CONTEXT, 8192, 32768)]
            cells = (
                f"`{size.name}`, {recipe}",
                _gb(stored.file_bytes),
                _gb(stored.matrices_bytes),
                " / ".join(_gb(num_bytes) for num_bytes in rows),
                _gb(need) + (", on ONNX" if size.runtime == "onnx" else ""),
                _board(need),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _board(need_bytes: int) -> str:
    fitting = (gb for gb in BOARDS_GB if need_bytes + SYSTEM_BYTES <= gb * 2**30 * 0.97)
    smallest = next(fitting, None)
    return f"{smallest} GB" if smallest else "none"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def with_table(text: str) -> str:
    """The document with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def main() -> None:
    SIZES_FILE.write_text(sizes_text([count(name) for name in NAMES]), encoding="utf-8")
    known_sizes.cache_clear()
    DOC.write_text(with_table(DOC.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
