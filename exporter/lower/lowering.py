"""What the pipeline asks of a runtime's package, and what it gets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.checkpoint.reader import DrafterCheckpoint, TargetCheckpoint
from exporter.config import DEVICES, GraphShapes
from exporter.errors import ExportError
from exporter.graph.experts import is_stack
from exporter.quantize import Recipe, WeightType
from exporter.text.files import TextFiles
from runtime_py.bundle.manifest import RuntimeName

OnStep = Callable[[int, int], None]  # work done, of how much in all


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is lowered."""

    target: TargetCheckpoint
    drafter: DrafterCheckpoint | None
    text: TextFiles
    recipe: Recipe
    shapes: GraphShapes


@dataclass(frozen=True)
class Lowered:
    """The files that a lowering made, the one that the runtime loads first at the head."""

    files: Sequence[Path]
    contents: str  # for the user: "3 graphs"


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """One runtime's package."""

    name: RuntimeName
    # Raises ExportError, before any work, for types of tensors that it cannot store.
    check: Callable[[Mapping[str, WeightType]], None]
    lower: Callable[[Job, Path, OnStep], Lowered]  # writes into the folder
    no_int8_rows: str = ""  # why KV rows cannot be int8; empty: they can


def refuse_int8_rows(device: str, wanted: Iterable[Lowering], known: Iterable[Lowering]) -> None:
    """Raise ExportError if a runtime, or the page for browsers, has no int8 KV rows.

    Args:
        device: what `--target` says.
        wanted: the runtimes to lower to.
        known: all runtimes.
    """
    if DEVICES[device].page:
        raise ExportError(
            f"--kv int8 with --target {device}: the page in the bundle makes float32 rows; use "
            "another --target, or --kv float32"
        )
    others = " or ".join(one.name for one in known if not one.no_int8_rows)
    for lowering in wanted:
        if lowering.no_int8_rows:
            raise ExportError(
                f"--kv int8 with --runtime {lowering.name}: {lowering.no_int8_rows}; use --runtime "
                f"{others}, or --kv float32"
            )


def refuse_experts(names: Iterable[str], reason: str) -> None:
    """Raise ExportError if a tensor belongs to experts: runtimes of constant weights have none."""
    for name in names:
        if is_stack(name):
            raise ExportError(f"{name}: {reason}; experts run on ONNX: use --runtime onnx")
