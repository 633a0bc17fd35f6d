"""Seconds and peak memory of lowering a stack of E2B's widths: our route beside the stock one."""

import shutil
from dataclasses import replace
from statistics import median

from tests.benchmarks.inputs import Graphs, Work, route_options
from tests.benchmarks.record import Raw, Result, command, ratio
from tests.benchmarks.watch import PEAK, add_cost, watched

STACK_LAYERS = 4
GRAPHS = Graphs(recipe="int8", verify_widths=(4,))
ROUTES = ("imports", "ours", "stock", "stock-light")


def measure(work: Work, num_repeats: int) -> Result:
    """Lower a stack by ours and by the stock route, in turn."""
    routes = _routes(work, num_repeats)
    files = (work.stack(STACK_LAYERS) / "target").glob("*.safetensors")
    checkpoint_mb = sum(path.stat().st_size for path in files) / 1e6
    settings = {
        "stack": f"{STACK_LAYERS} layers of E2B's widths, 2 of them shared, vocabulary 8192, bf16 "
        "checkpoint with a drafter; int8; prefill_128, decode, verify; 2048 KV rows",
        "ours": "exporter.lower.litert, from the checkpoint to the .litertlm",
        "stock": "litert_torch.convert of the same modules with their real float32 weights, then "
        "ai-edge-quantizer, file by file; stock-light: with lightweight_conversion",
        "imports": "a process that imports the same packages and reads the checkpoint's header",
        "peak": PEAK,
    }
    found = {
        "bf16 target checkpoint, MB": checkpoint_mb,
        "our peak without the imports' / checkpoint": median(_above(routes, "ours"))
        / checkpoint_mb,
    }
    return Result(settings=settings, raw=routes, ratios=_ratios(routes), found=found)


def _routes(work: Work, num_repeats: int) -> Raw:
    raw: Raw = {}
    stack = work.stack(STACK_LAYERS)
    for _ in range(num_repeats):
        for route in ROUTES:
            out = work.folder / "route"
            shutil.rmtree(out, ignore_errors=True)
            options = route_options(stack, replace(GRAPHS, route=route), out)
            cost = watched("tests.benchmarks.export_route", options)
            add_cost(raw, route, cost)
    return raw


def _ratios(routes: Raw) -> dict[str, float]:
    ratios = {}
    for route in ("stock", "stock-light"):
        for unit in ("seconds", "peak MB", "peak anonymous MB"):
            ratios[f"{route} / ours, {unit}"] = ratio(routes, f"{route}: {unit}", f"ours: {unit}")
        above = zip(_above(routes, route), _above(routes, "ours"), strict=True)
        ratios[f"{route} / ours, peak MB without the imports'"] = median(a / b for a, b in above)
    return ratios


def _above(routes: Raw, route: str) -> list[float]:
    """Peak of a route, less that of its imports alone."""
    peaks, base = routes[f"{route}: peak MB"], routes["imports: peak MB"]
    return [peak - nothing for peak, nothing in zip(peaks, base, strict=True)]


# Not five: memory hardly varies, and a repeat takes minutes.
main = command("export_memory", measure, num_repeats=3)

if __name__ == "__main__":
    main()
