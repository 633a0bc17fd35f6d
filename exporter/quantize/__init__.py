"""Weights to integers and scales: the recipe says which, the arithmetic is ai-edge-quantizer's."""

from exporter.quantize.arithmetic import QuantizedRows, quantize, quantize_rows
from exporter.quantize.recipe import Recipe, WeightType, load_recipe, plan, size_bytes

__all__ = [
    "QuantizedRows",
    "Recipe",
    "WeightType",
    "load_recipe",
    "plan",
    "quantize",
    "quantize_rows",
    "size_bytes",
]
