"""Runtimes that cannot choose the weights of a matrix while they run refuse experts."""

from collections.abc import Iterable

from exporter.errors import ExportError
from exporter.graph.experts import is_stack


def refuse_experts(names: Iterable[str], reason: str) -> None:
    """Raise ExportError if one of the tensors belongs to experts."""
    for name in names:
        if is_stack(name):
            raise ExportError(f"{name}: {reason}; experts run on ONNX: use --runtime onnx")
