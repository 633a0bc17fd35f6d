"""Which of the layers that own KV rows slide: every file with graphs says so."""

from exporter.graph.spec import TargetSpec
from runtime_py.bundle.manifest import SlidingEntry


def sliding_layers(spec: TargetSpec) -> SlidingEntry | None:
    """None if none does."""
    layers = tuple(layer.index for layer in spec.kv_layers if layer.kind == "sliding_attention")
    return SlidingEntry(window=spec.sliding_window, layers=layers) if layers else None
