"""Lowering to ONNX: three graphs and one file of weights that they share."""

from exporter.lower.onnx.lower import LOWERING

__all__ = ["LOWERING"]
