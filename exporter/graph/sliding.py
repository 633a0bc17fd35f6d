"""The sliding layers that own KV rows, as every model file names them."""

from exporter.graph.spec import TargetSpec
from runtime_py.bundle.manifest import SlidingEntry


def sliding_layers(spec: TargetSpec) -> SlidingEntry | None:
    """None if no layer slides."""
    layers = tuple(layer.index for layer in spec.kv_layers if layer.kind == "sliding_attention")
    return SlidingEntry(window=spec.sliding_window, layers=layers) if layers else None
