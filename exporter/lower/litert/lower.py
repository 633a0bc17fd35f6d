"""Target and drafter to .tflite files: one road for every size, float32 included."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from exporter.checkpoint import DrafterCheckpoint, TargetCheckpoint
from exporter.config import GraphShapes
from exporter.graph.drafter import Drafter
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.graph.weights import is_virtual, load_weights
from exporter.lower.litert.inject import OnBytes, inject
from exporter.lower.litert.modules import (
    PRIMITIVES,
    drafter_signature,
    embedder_signature,
    target_signatures,
)
from exporter.lower.litert.skeleton import Signature, convert
from exporter.quantize import Recipe, WeightType, plan

logger = logging.getLogger(__name__)

DRAFTER_PREFIX = "drafter."  # how a recipe names the drafter's tensors


@dataclass(frozen=True)
class _Writer:
    """One checkpoint, planned once, from which one or more .tflite files are made."""

    checkpoint: TargetCheckpoint | DrafterCheckpoint
    types: dict[str, WeightType]
    out_dir: Path
    on_bytes: OnBytes | None

    def write(self, stem: str, module: nn.Module, signatures: Sequence[Signature]) -> Path:
        weights = {n: p for n, p in module.named_parameters() if is_virtual(p)}
        out = self.out_dir / f"{stem}.tflite"
        with tempfile.TemporaryDirectory(dir=self.out_dir) as scratch:
            skeleton = Path(scratch) / out.name
            names = convert(signatures, weights, skeleton)
            inject(skeleton, names, self.checkpoint, self.types, out, self.on_bytes)
        return out


def lower(
    target: TargetCheckpoint,
    drafter: DrafterCheckpoint | None,
    shapes: GraphShapes,
    recipe: Recipe,
    out_dir: Path,
    on_bytes: OnBytes | None = None,
) -> list[Path]:
    """Write embedder, per_layer_embedder (if PLE), prefill_decode and mtp_drafter (if a drafter).

    Args:
        target: its tensors are read row by row; never is a whole large one in memory.
        drafter: read against `target`, or None.
        shapes: the static sizes of the signatures.
        recipe: how every tensor is stored.
        out_dir: an existing folder.
        on_bytes: called as weights are written, with file name, bytes done and bytes in all.

    Returns:
        The files written, all .tflite.

    Raises:
        ExportError: if the installed tools are not the pinned ones, or the recipe does not fit.
    """
    writer = _Writer(target, plan(target, recipe), out_dir, on_bytes)
    files = [_write_embedder(writer, Embedder(target.spec), "embedder")]
    if target.spec.per_layer_size:
        embedder = PerLayerEmbedder(target.spec)
        files.append(_write_embedder(writer, embedder, "per_layer_embedder"))
    decoder = Target(target.spec, PRIMITIVES)
    load_weights(decoder, target, virtual=True)
    files.append(writer.write("prefill_decode", decoder, target_signatures(decoder, shapes)))
    if drafter is not None:
        types = plan(drafter, recipe, DRAFTER_PREFIX)
        module = Drafter(drafter.spec, PRIMITIVES)
        load_weights(module, drafter, virtual=True)
        signature = drafter_signature(module, target.spec, shapes)
        writer = _Writer(drafter, types, out_dir, on_bytes)
        files.append(writer.write("mtp_drafter", module, [signature]))
    return files


def _write_embedder(writer: _Writer, embedder: Embedder | PerLayerEmbedder, stem: str) -> Path:
    load_weights(embedder, writer.checkpoint, virtual=True)
    return writer.write(stem, embedder, [embedder_signature(embedder, stem)])
