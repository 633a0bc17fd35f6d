"""What a bundle of each published size holds, counted from the true configurations.

    python -m tests.memory_budget   # rewrites inspection/sizes.toml and the table in the docs

Weights are counted as the recipes store them. `gemma-run doctor` reads sizes.toml; what memory that
takes says runtime_py/inspection/memory.py, as for every command. tests/test_memory_budget.py
compares.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from exporter.config import DEVICES, GraphShapes
from exporter.estimate.work import measure_work
from exporter.graph.spec import KINDS
from exporter.quantize import load_recipe
from runtime_py.inspection.sizes import SIZES_FILE, Size, Stored, known_sizes
from tests.virtual import virtual_pair

NAMES = ("e2b", "e4b", "12b", "26b-a4b", "31b")
RECIPES = ("int8", "int4", "mobile")
FLOAT_BYTES = 4
DOC = Path(__file__).parents[1] / "docs" / "raspberry-pi.md"
BEGIN, END = "<!-- python -m tests.memory_budget -->\n", "<!-- end -->\n"
CONTEXT = DEVICES["raspberry-pi"].context_length
BOARDS_GB = (2, 4, 8, 16)
SYSTEM_BYTES = 400_000_000  # what Raspberry Pi OS without a desktop may take; not measured by us


def count(name: str) -> Size:
    """A size, by the configurations that tests/make_checkpoint.py has of it."""
    target, drafter = virtual_pair(name)
    spec = target.spec
    row_bytes = dict.fromkeys(KINDS, 0)
    for layer in spec.kv_layers:
        row_bytes[layer.kind] += 2 * FLOAT_BYTES * layer.num_kv_heads * layer.head_dim
    works = {
        recipe: measure_work(target, drafter, load_recipe(recipe), GraphShapes(), text_bytes=0)
        for recipe in RECIPES
    }
    return Size(
        name=name,
        has_experts=any(layer.experts is not None for layer in spec.layers),
        vocab_size=spec.vocab_size,
        full_kv_bytes_per_token=row_bytes["full_attention"],
        sliding_kv_bytes_per_token=row_bytes["sliding_attention"],
        sliding_window=spec.sliding_window,
        graph_layers=works[RECIPES[0]].graph_layers,
        recipes={
            recipe: Stored(
                table_bytes=work.looked_up.size_bytes, matrices=work.all_multiplied.by_type
            )
            for recipe, work in works.items()
        },
    )


def sizes_text(sizes: list[Size]) -> str:
    """sizes.toml."""
    lines = ["# Counted, not measured: python -m tests.memory_budget rewrites this file."]
    for size in sizes:
        lines += ["", f"[{size.name}]", f"has_experts = {json.dumps(size.has_experts)}"]
        lines += [f"vocab_size = {size.vocab_size}"]
        lines += [f"full_kv_bytes_per_token = {size.full_kv_bytes_per_token}"]
        lines += [f"sliding_kv_bytes_per_token = {size.sliding_kv_bytes_per_token}"]
        lines += [f"sliding_window = {size.sliding_window}"]
        lines += [f"graph_layers = {_inline(size.graph_layers)}"]
        for recipe, stored in size.recipes.items():
            lines += [
                f"[{size.name}.recipes.{recipe}]",
                f"table_bytes = {stored.table_bytes}",
                f"matrices = {_inline(stored.matrices)}",
            ]
    return "\n".join(lines) + "\n"


def _inline(values: Mapping[str, int]) -> str:
    return f"{{ {', '.join(f'{name} = {values[name]}' for name in sorted(values))} }}"


def table() -> str:
    """The table of docs/raspberry-pi.md."""
    lines = [
        f"| size, recipe | weights in the bundle | of them read for every token | KV rows for "
        f"{CONTEXT} / 8192 / 32768 tokens | memory, {CONTEXT} tokens | a board of |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for size in known_sizes():
        for recipe, stored in size.recipes.items():
            need = size.need_bytes(recipe, CONTEXT, size.runtime)
            rows = [size.kv_bytes(length) for length in (CONTEXT, 8192, 32768)]
            cells = (
                f"`{size.name}`, {recipe}",
                _gb(stored.size_bytes),
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
