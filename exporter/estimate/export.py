"""What an export will take, computed from the shapes of its tensors before the work begins.

Sizes follow from the recipe and from what the tools add to it. What they add, and the seconds, were
measured by tests/benchmarks/full_size.py on two idle cores. Each constant below is the cost of one
thing that its comment names.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import ExportError
from exporter.estimate.work import Matrices, Work
from exporter.original.model import KEPT_BYTES, KEPT_HEAD_BYTES, TOKENS_AT_ONCE, group_texts
from exporter.original.record import ReferenceSize
from exporter.quantize.arithmetic import CHUNK_BYTES
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.inspection.memory import (
    Memory,
    memory_of,
    memory_text,
    packed_bytes,
    total_bytes,
)

logger = logging.getLogger(__name__)

MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How often the original's weights are read while it is recorded."""

    num_texts: int
    num_passes: int  # over all layers, for all texts together
    num_read: int  # tokens in all passes and texts together
    num_drafts: int  # passes over the drafter
    kept: bool  # the target's weights are read once, not in every pass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one stage of the export takes."""

    seconds: float
    peak_bytes: float  # resident
    disk_bytes: float = 0.0  # at its peak, in the bundle's folder
    bundle_bytes: float = 0.0  # the part that stays


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a whole export takes, and its bundle on a device."""

    seconds: float
    peak_bytes: float
    disk_bytes: float
    bundle_bytes: float
    devices: Mapping[RuntimeName, tuple[Memory, ...]]  # of the bundle while it generates


START_S, START_BYTES = 8.0, 500 * MB  # Python with torch and transformers
CHUNK_COPIES = 13  # memory for quantizing, in chunks: the allocator keeps what it freed
HASHING_S = 1 / 700e6  # per byte of the bundle, which is written and read again

# Recording the original, per weight.
LENT_S = 1.0e-9  # in a pass that reads it from the checkpoint and widens it
KEPT_S = 1.5e-9  # in a pass that finds it in memory
COMPUTED_S = 2.5e-11  # per token
EXPERT_S = 2.6e-9  # an expert's, in a pass over several texts: they use about half of the experts
PASS_LAYER_S = 0.004  # per layer in a pass, whatever its size
LOGITS = 42  # memory for logits, in copies of all texts' logits: the allocator keeps what it freed

# LiteRT: per layer in a graph, traced, converted and written; per weight, quantized and written.
LITERT_START_S, LITERT_LAYER_S, LITERT_WEIGHT_S = 10.0, 1.1, 26e-9
LITERT_START_BYTES, LITERT_LAYER_BYTES, LITERT_WEIGHT_BYTES = 830 * MB, 2.8 * MB, 0.04
LITERT_GRAPH_BYTES = 45_000  # of the file, for a layer in a graph
LITERT_SCALE_BYTES = 12  # a scale and a zero point

# ExecuTorch.
EXECUTORCH_START_S, EXECUTORCH_LAYER_S, EXECUTORCH_WEIGHT_S = 40.0, 7.4, 20e-9
EXECUTORCH_START_BYTES, EXECUTORCH_LAYER_BYTES = 800 * MB, 2 * MB
EXECUTORCH_COPIES = 1.3  # of the packed matrices, on their way into the file
EXECUTORCH_GRAPH_BYTES = 100_000

# ONNX.
ONNX_START_S, ONNX_LAYER_S, ONNX_WEIGHT_S = 12.0, 2.0, 20e-9
ONNX_START_BYTES, ONNX_LAYER_BYTES = 520 * MB, 2 * MB
ONNX_GRAPH_BYTES = 60_000

PAGE_BYTES = 1 << 31  # limit of @litertjs/core's WebAssembly


def _recording_cost(work: Work, passes: Passes) -> Cost:
    num_weights = work.multiplied.num_weights
    num_dense = num_weights - work.experts.num_weights
    weight_s = KEPT_S if passes.kept else LENT_S
    drafter = work.drafter_linears.num_weights + work.drafter_tables.num_weights
    lent_head = work.drafter_head if 4 * work.drafter_head > KEPT_HEAD_BYTES else 0
    kept_bytes = 4 * (num_weights * passes.kept + drafter - lent_head)
    experts_bytes = 4 * work.experts.num_weights / work.num_layers
    return Cost(
        seconds=START_S
        + passes.num_passes
        * (
            num_dense * weight_s
            + work.experts.num_weights * EXPERT_S
            + work.num_layers * PASS_LAYER_S
        )
        + passes.num_read * num_dense * COMPUTED_S
        + passes.num_drafts
        * (
            (work.drafter_linears.num_weights - lent_head) * KEPT_S
            + lent_head * LENT_S
            + work.num_drafter_layers * PASS_LAYER_S
        ),
        peak_bytes=START_BYTES
        + kept_bytes
        + LOGITS * 4 * passes.num_texts * work.vocab_size
        + experts_bytes,
    )


def _chunk_bytes(work: Work) -> float:
    """Memory for quantizing a few rows at a time."""
    return CHUNK_COPIES * min(CHUNK_BYTES, 4 * work.largest_matrix)


def _file_bytes(work: Work, scale_bytes: int, graphs_bytes: int) -> int:
    """Of the made files: weights, their scales, vectors and graphs."""
    stored = work.stored
    return stored.size_bytes + scale_bytes * stored.num_scales + work.vector_bytes + graphs_bytes


def _litert_cost(work: Work) -> Cost:
    num_layers = work.graph_layers["litert"]
    bundle_bytes = _file_bytes(work, LITERT_SCALE_BYTES, LITERT_GRAPH_BYTES * num_layers)
    return Cost(
        seconds=LITERT_START_S
        + LITERT_LAYER_S * num_layers
        + LITERT_WEIGHT_S * work.stored.num_weights,
        peak_bytes=LITERT_START_BYTES
        + _chunk_bytes(work)
        + LITERT_LAYER_BYTES * num_layers
        + LITERT_WEIGHT_BYTES * work.stored.num_weights,
        # The graphs are written as several files and then packed into one, which holds the tied
        # table once.
        disk_bytes=2 * bundle_bytes + work.tied.size_bytes,
        bundle_bytes=bundle_bytes,
    )


def _executorch_cost(work: Work) -> Cost:
    num_layers = work.num_layers + work.num_drafter_layers
    bundle_bytes = _file_bytes(work, 4, EXECUTORCH_GRAPH_BYTES * num_layers)
    return Cost(
        seconds=EXECUTORCH_START_S
        + EXECUTORCH_LAYER_S * num_layers
        + EXECUTORCH_WEIGHT_S * work.stored.num_weights,
        peak_bytes=EXECUTORCH_START_BYTES
        + _chunk_bytes(work)
        + EXECUTORCH_LAYER_BYTES * num_layers
        + _unpacked_bytes(work.all_multiplied)
        + EXECUTORCH_COPIES * work.all_multiplied.size_bytes
        + 2 * work.looked_up.size_bytes,
        disk_bytes=bundle_bytes,
        bundle_bytes=bundle_bytes,
    )


def _unpacked_bytes(matrices: Matrices) -> int:
    """XNNPACK's passes unpack values of less than a byte to a byte each."""
    return matrices.num_weights if matrices.size_bytes < matrices.num_weights else 0


def _onnx_cost(work: Work) -> Cost:
    num_layers = work.num_layers + work.num_drafter_layers
    bundle_bytes = _file_bytes(work, 4, ONNX_GRAPH_BYTES * num_layers)
    return Cost(
        seconds=ONNX_START_S + ONNX_LAYER_S * num_layers + ONNX_WEIGHT_S * work.stored.num_weights,
        peak_bytes=ONNX_START_BYTES + _chunk_bytes(work) + ONNX_LAYER_BYTES * num_layers,
        disk_bytes=bundle_bytes,
        bundle_bytes=bundle_bytes,
    )


COSTS: Mapping[RuntimeName, Callable[[Work], Cost]] = {
    "litert": _litert_cost,
    "executorch": _executorch_cost,
    "onnx": _onnx_cost,
}


def count_passes(work: Work, size: ReferenceSize, prompt_lengths: Sequence[int]) -> Passes:
    """Count the passes that `record_reference` will make.

    Args:
        work: what is exported.
        size: tokens and drafts to record.
        prompt_lengths: tokens of every prompt.
    """
    groups = [[prompt_lengths[index] for index in group] for group in group_texts(prompt_lengths)]
    num_drafts = max(0, size.num_tokens - size.draft_length) * size.draft_length
    return Passes(
        num_texts=len(prompt_lengths),
        num_passes=sum(
            -(-max(lengths) // max(1, TOKENS_AT_ONCE // len(lengths))) + size.num_tokens - 1
            for lengths in groups
        ),
        num_read=sum(len(lengths) * (max(lengths) + size.num_tokens - 1) for lengths in groups),
        num_drafts=len(groups) * num_drafts,
        kept=4 * (work.multiplied + work.tables).num_weights <= KEPT_BYTES,
    )


def estimate(work: Work, passes: Passes, runtimes: Sequence[RuntimeName]) -> Estimate:
    """Add up the stages; they run one after the other, and what each writes stays."""
    first = _recording_cost(work, passes)
    costs = [COSTS[name](work) for name in runtimes]
    bundle_bytes = work.text_bytes + sum(cost.bundle_bytes for cost in costs)
    scratch_bytes = max(cost.disk_bytes - cost.bundle_bytes for cost in costs)
    return Estimate(
        seconds=first.seconds + sum(cost.seconds for cost in costs) + bundle_bytes * HASHING_S,
        peak_bytes=max(cost.peak_bytes for cost in (first, *costs)),
        disk_bytes=bundle_bytes + scratch_bytes,
        bundle_bytes=bundle_bytes,
        devices={name: memory_of(name, work.contents(name)) for name in runtimes},
    )


def refuse_small_disk(found: Estimate, output: Path) -> None:
    """Raise ExportError if the bundle does not fit where it is to be made."""
    folder = next(path for path in output.absolute().parents if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < found.disk_bytes:
        raise ExportError(
            f"{folder}: the disk is too full: {free / MB:.0f} MB free, about "
            f"{found.disk_bytes / MB:.0f} MB needed; free some room or choose another --output"
        )


def refuse_large_page(work: Work) -> None:
    """Raise ExportError if a browser cannot hold the graphs.

    It copies every section into memory, and every graph with logits repacks all its matrices.
    Prefill's graphs, which repack less, and buffers are not counted: this is a lower bound.
    """
    packed = packed_bytes("litert", work.multiplied.by_type)
    needed = work.stored.size_bytes + work.num_verifies * packed
    if needed > PAGE_BYTES:
        raise ExportError(
            f"a browser's WebAssembly holds {PAGE_BYTES / MB:.0f} MB, weights and their repacked "
            f"copies take {needed / MB:.0f} MB at least; choose a smaller model or fewer bits"
        )


def report_estimate(found: Estimate) -> None:
    """Log it."""
    logger.info(
        "estimate    about %.0f s on two cores, %.0f MB of memory at its peak",
        found.seconds,
        found.peak_bytes / MB,
    )
    logger.info(
        "estimate    %.0f MB of disk, for a bundle of %.0f MB",
        found.disk_bytes / MB,
        found.bundle_bytes / MB,
    )
    for name, memory in found.devices.items():
        logger.info(
            "estimate    %s: %s of memory on the device while it generates",
            name,
            memory_text(total_bytes(memory)),
        )
