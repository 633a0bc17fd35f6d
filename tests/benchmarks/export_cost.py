"""Seconds and peak memory of gemma-export for the tiny model, by recipe and stage."""

import tempfile
from pathlib import Path

from tests.benchmarks.inputs import RECIPES, Work, tiny_options
from tests.benchmarks.record import Raw, Result, command, ratio
from tests.benchmarks.watch import PEAK, add_cost, watched


def measure(work: Work, num_repeats: int) -> Result:
    """Export the tiny model with every recipe, from the start of Python to the bundle."""
    raw: Raw = {}
    for _ in range(num_repeats):
        for recipe in RECIPES:
            with tempfile.TemporaryDirectory(dir=work.folder) as scratch:
                cost = watched("exporter", tiny_options(recipe, Path(scratch) / "bundle"))
            add_cost(raw, recipe, cost)
    ratios = {
        f"{recipe} / float32, {unit}": ratio(raw, f"{recipe}: {unit}", f"float32: {unit}")
        for recipe in RECIPES[1:]
        for unit in ("seconds", "peak MB")
    }
    settings = {
        "command": "gemma-export --target raspberry-pi --size tiny --quantize RECIPE --no-check",
        "stages": "until the stage's line in the log; checkpoint holds the start of Python",
        "peak": PEAK,
    }
    return Result(settings=settings, raw=raw, ratios=ratios)


# Not five: memory hardly varies, and a repeat takes minutes.
main = command("export_cost", measure, num_repeats=3)

if __name__ == "__main__":
    main()
