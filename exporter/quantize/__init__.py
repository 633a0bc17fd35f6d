"""Weights to integers and scales, as the recipe says, by ai-edge-quantizer's arithmetic."""

from exporter.quantize.arithmetic import RowSource, quantize, quantize_rows
from exporter.quantize.kv_rows import KV_BYTES, KvRange
from exporter.quantize.recipe import (
    DRAFTER_PREFIX,
    Recipe,
    WeightType,
    load_recipe,
    plan,
    report,
    size_bytes,
)

__all__ = [
    "DRAFTER_PREFIX",
    "KV_BYTES",
    "KvRange",
    "Recipe",
    "RowSource",
    "WeightType",
    "load_recipe",
    "plan",
    "quantize",
    "quantize_rows",
    "report",
    "size_bytes",
]
