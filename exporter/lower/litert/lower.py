"""Target and drafter to .tflite files and the .litertlm that holds them."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from exporter.checkpoint.reader import DrafterCheckpoint, TargetCheckpoint
from exporter.config import GraphShapes
from exporter.errors import ExportError
from exporter.graph.drafter import Drafter
from exporter.graph.sliding import sliding_layers
from exporter.graph.spec import TargetSpec
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.graph.weights import is_virtual, load_weights
from exporter.lower.litert.inject import inject
from exporter.lower.litert.int8_rows import store_int8_rows
from exporter.lower.litert.modules import (
    PRIMITIVES,
    drafter_signature,
    embedder_signature,
    target_signatures,
)
from exporter.lower.litert.pack import pack, version_stamp
from exporter.lower.litert.skeleton import convert
from exporter.lower.litert.vendor import PACKAGES, Signature
from exporter.lower.lowering import Job, Lowered, Lowering, OnStep, refuse_experts
from exporter.pins import check_pins
from exporter.quantize import DRAFTER_PREFIX, KvRange, Recipe, WeightType, plan, size_bytes

KvRanges = Mapping[int, KvRange] | None  # None: the rows are float32

# FULLY_CONNECTED takes integer weights as constants only, and its sizes are fixed: an expert
# without tokens would cost as much as the others. EMBEDDING_LOOKUP gathers integers, but makes
# float32: 190 MB in a layer of 26B-A4B, instead of 24 MB of int4. litert-torch 0.10.0 cannot lower
# torch.cond.
_NO_EXPERTS = "LiteRT multiplies by constants only, and experts are chosen while it runs"


@dataclass(frozen=True)
class _Job:
    """One .tflite to write."""

    name: str
    module: nn.Module
    signatures: Sequence[Signature]
    checkpoint: TargetCheckpoint | DrafterCheckpoint
    types: Mapping[str, WeightType]

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if is_virtual(p)}

    @property
    def size_bytes(self) -> int:
        return sum(size_bytes(p.shape, self.types[name]) for name, p in self.weights.items())

    def write(self, out: Path, kv_ranges: KvRanges, on_bytes: Callable[[int], None]) -> None:
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            skeleton = Path(scratch) / out.name
            names = convert(self.signatures, self.weights, skeleton)
            if kv_ranges is not None:
                store_int8_rows(skeleton, kv_ranges)
            inject(skeleton, names, self.checkpoint, self.types, out, on_bytes)


def check(types: Mapping[str, WeightType]) -> None:
    """Refuse what this lowering cannot do, before any work.

    Args:
        types: of target and drafter together, by tensor name.

    Raises:
        ExportError: if the installed tools are not the pinned ones, a type cannot be stored, or
            the model has experts.
    """
    refuse_experts(types, _NO_EXPERTS)
    check_pins("lowering to LiteRT", PACKAGES)
    for name, kind in types.items():
        if kind.group_size:
            raise ExportError(
                f"{name}: one scale for every {kind.group_size} weights, LiteRT graphs have one "
                "per row; use --runtime executorch or onnx, or --quantize int4 (with --requantize "
                "if the checkpoint stores these integers)"
            )


def lower(
    target: TargetCheckpoint,
    drafter: DrafterCheckpoint | None,
    shapes: GraphShapes,
    recipe: Recipe,
    out_dir: Path,
    on_step: OnStep = lambda _done, _total: None,
) -> list[Path]:
    """Write embedder, per_layer_embedder (if PLE), prefill_decode and mtp_drafter (if a drafter).

    Args:
        target: read row by row; no large tensor is ever in memory as a whole.
        drafter: read against `target`, or None.
        shapes: the static sizes of the signatures.
        recipe: how every tensor is stored.
        out_dir: an existing folder.
        on_step: called as weights are written, with the bytes done, of how many in all.

    Returns:
        The files written, all .tflite.

    Raises:
        ExportError: as `check` does, or if the recipe does not fit.
    """
    types = plan(target, recipe)
    check(types)
    jobs = _target_jobs(target, shapes, types)
    if drafter is not None:
        types = plan(drafter, recipe, DRAFTER_PREFIX)
        check(types)
        jobs.append(_drafter_job(drafter, target.spec, shapes, types))
    total = sum(job.size_bytes for job in jobs)
    done = 0
    files = []
    for job in jobs:
        files.append(out_dir / job.name)
        job.write(files[-1], recipe.kv_ranges, partial(_report, on_step, done, total))
        done += job.size_bytes
    return files


def _target_jobs(
    target: TargetCheckpoint, shapes: GraphShapes, types: Mapping[str, WeightType]
) -> list[_Job]:
    spec = target.spec
    embedders: dict[str, Embedder | PerLayerEmbedder] = {"embedder": Embedder(spec)}
    if spec.per_layer_size:
        embedders["per_layer_embedder"] = PerLayerEmbedder(spec)
    jobs = [
        _Job(f"{name}.tflite", module, [embedder_signature(module, name)], target, types)
        for name, module in embedders.items()
    ]
    decoder = Target(spec, PRIMITIVES)
    signatures = target_signatures(decoder, shapes)
    jobs.append(_Job("prefill_decode.tflite", decoder, signatures, target, types))
    for job in jobs:
        load_weights(job.module, target, virtual=True)
    return jobs


def _drafter_job(
    drafter: DrafterCheckpoint,
    target: TargetSpec,
    shapes: GraphShapes,
    types: Mapping[str, WeightType],
) -> _Job:
    module = Drafter(drafter.spec, PRIMITIVES)
    load_weights(module, drafter, virtual=True)
    signature = drafter_signature(module, target, shapes)
    return _Job(f"{signature.name}.tflite", module, [signature], drafter, types)


def _report(on_step: OnStep, done_before: int, total: int, done_here: int) -> None:
    on_step(done_before + done_here, total)


def _lower(job: Job, folder: Path, on_step: OnStep) -> Lowered:
    out = folder / "model.litertlm"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        parts = Path(scratch)
        files = lower(job.target, job.drafter, job.shapes, job.recipe, parts, on_step)
        stamp = version_stamp(job.recipe.name, sliding_layers(job.target.spec))
        pack(parts, job.text, job.shapes.cache_length, stamp, out)
    return Lowered([out], f"{len(files)} graph files")


LOWERING = Lowering(name="litert", check=check, lower=_lower)
