"""Read a target or drafter checkpoint: config.json and lazily mapped safetensors.

A checkpoint is untrusted: everything is checked before it is used, and nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from exporter.checkpoint.adapter import Adapter, read_adapter
from exporter.checkpoint.config import parse_drafter, parse_target
from exporter.checkpoint.files import (
    FLOAT_TYPES,
    INTEGER_TYPES,
    Stored,
    open_tensors,
    read_json,
)
from exporter.checkpoint.generation import read_generation, suppressed_ids
from exporter.checkpoint.kinds import require_folder, require_safetensors
from exporter.checkpoint.names import check_names, is_unused, normalised_names
from exporter.checkpoint.packed import PackedTensor, join_packed, packed_types
from exporter.errors import ExportError, NotFiniteError
from exporter.graph.drafter import Drafter
from exporter.graph.spec import DrafterSpec, TargetSpec
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.graph.weights import expected_tensors
from runtime_py.terminal.printable import shown

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
TOKEN_ORDERING = "masked_embedding.token_ordering"
COMPARED_ROWS = 4096  # rows compared at a time: bounds memory, not the result

Spec = TypeVar("Spec", TargetSpec, DrafterSpec)


@dataclass(frozen=True)
class Checkpoint(Generic[Spec]):
    """A checked checkpoint. Tensors have normalised names (see names.py)."""

    folder: Path
    config: Mapping[str, Any]  # config.json, unchanged
    spec: Spec
    _tensors: Mapping[str, Stored]
    keeps_integers: bool = True  # False: a recipe may round their values again
    adapter: Adapter | None = None  # merged into the tensors

    def names(self) -> list[str]:
        """Every tensor that the graph needs, once; a tied head is `embed_tokens.weight`."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name).shape

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1 as float32; no others are read from the file.

        A stack of matrices [N, O, I] has N * O rows.

        Raises:
            ExportError: if a number in them is none.
        """
        stored = self._stored(name)
        if not 0 <= start <= stop <= stored.num_rows:
            raise ValueError(f"{name}: rows {start}..{stop} of {stored.num_rows}")
        rows = stored.rows(start, stop).to(torch.float32, copy=True)
        stored.release(start, stop)
        if not _is_finite(rows):
            raise NotFiniteError(
                f"{stored.path}: {name} holds NaN or infinity in rows {start} to {stop - 1}; "
                "download it again, or save the checkpoint of a training step before it broke"
            )
        return rows

    def tensor(self, name: str) -> Tensor:
        """The whole tensor as float32."""
        stored = self._stored(name)
        return self.rows(name, 0, stored.num_rows).reshape(stored.shape)

    def integers(self, name: str) -> Tensor:
        """An integer table (token_ordering) as int32."""
        return self._stored(name).rows(0, self.shape(name)[0]).to(torch.int32)

    def packed(self, name: str) -> PackedTensor | None:
        """This matrix's stored integers, if it has any and they are kept."""
        stored = self._stored(name)
        return stored if self.keeps_integers and isinstance(stored, PackedTensor) else None

    def check_finite(self) -> None:
        """Read every weight once.

        Raises:
            ExportError: naming the first tensor that holds NaN or infinity.
        """
        for name in self.names():
            stored = self._stored(name)
            if stored.type_name in FLOAT_TYPES:
                for start in range(0, stored.num_rows, COMPARED_ROWS):
                    self.rows(name, start, min(start + COMPARED_ROWS, stored.num_rows))

    def _stored(self, name: str) -> Stored:
        return self._tensors[name]


TargetCheckpoint = Checkpoint[TargetSpec]
DrafterCheckpoint = Checkpoint[DrafterSpec]


def read_checkpoint(
    folder: Path, adapter: Path | None = None, *, keep_integers: bool = True
) -> TargetCheckpoint:
    """Open a target.

    Args:
        folder: with config.json, safetensors and perhaps generation_config.json.
        adapter: the folder of a LoRA adapter to merge into it.
        keep_integers: those that the checkpoint stores go into the bundle as they are.

    Raises:
        ExportError: the folder is not a Gemma 4 target this project can export, or the adapter is
            not one for it; the message says what it is and what to do.
    """
    config = _read_config(folder)
    spec = parse_target(config, str(folder / "config.json"))
    generation = read_generation(folder, config)
    spec = replace(spec, suppressed_ids=suppressed_ids(generation, spec.vocab_size, folder))
    modules: list[nn.Module] = [Embedder(spec), Target(spec)]
    if spec.per_layer_size:
        modules.append(PerLayerEmbedder(spec))
    tensors = _open(folder, config, spec, modules)
    checkpoint = Checkpoint(folder, config, spec, tensors, keep_integers)
    return checkpoint if adapter is None else _merged(checkpoint, read_adapter(adapter))


def _merged(checkpoint: TargetCheckpoint, adapter: Adapter) -> TargetCheckpoint:
    """The checkpoint with the adapter's changes."""
    config, spec, tensors = checkpoint.config, checkpoint.spec, dict(checkpoint._tensors)
    changed = {name for name in adapter.names if not is_unused(name, spec)}
    touched = adapter.names & {EMBEDDING, HEAD}
    if spec.tied_head and touched and not (adapter.keeps_tie and EMBEDDING in touched):
        # In training, a change to one of the two did not change the other, although PEFT's
        # merge_and_unload adds it to both (and warns).
        tensors[HEAD] = tensors[EMBEDDING]
        spec = replace(spec, tied_head=False)
        config = {**config, "tie_word_embeddings": False}
        changed |= touched
    unknown = sorted(changed - set(tensors))
    if unknown:
        raise ExportError(
            f"{adapter.folder}: changes {shown(unknown[0])}, which {checkpoint.folder} has not "
            f"({len(unknown)} of {len(adapter.names)} tensors); give the model it was trained on"
        )
    packed = [name for name in changed if isinstance(tensors[name], PackedTensor)]
    if packed and checkpoint.keeps_integers:
        raise ExportError(
            f"{adapter.folder}: changes {min(packed)}, whose integers {checkpoint.folder} stores; "
            "give the unquantized checkpoint, or add --requantize to round the sum again"
        )
    tensors |= {name: adapter.merged(name, tensors[name]) for name in changed}
    if spec != checkpoint.spec and _equal(tensors[HEAD], tensors[EMBEDDING]):
        spec, config = checkpoint.spec, checkpoint.config
        del tensors[HEAD]
    return replace(checkpoint, config=config, spec=spec, _tensors=tensors, adapter=adapter)


def read_drafter(folder: Path, target: TargetCheckpoint) -> DrafterCheckpoint:
    """Open the drafter of `target`; its integers are kept if the target's are.

    Raises:
        ExportError: as read_checkpoint, or if the drafter was made for another target.
    """
    config = _read_config(folder)
    spec = parse_drafter(config, str(folder / "config.json"), target.spec)
    tensors = _open(folder, config, spec, [Drafter(spec)])
    checkpoint = Checkpoint(folder, config, spec, tensors, target.keeps_integers)
    if spec.centroids is not None:
        _check_ordering(checkpoint)
    return checkpoint


def _read_config(folder: Path) -> dict[str, Any]:
    require_folder(folder)
    return read_json(folder / "config.json")


def _open(
    folder: Path,
    config: Mapping[str, Any],
    spec: TargetSpec | DrafterSpec,
    modules: list[nn.Module],
) -> dict[str, Stored]:
    """The tensors that the modules need, checked, in the modules' order."""
    types = packed_types(config, str(folder / "config.json"))
    require_safetensors(folder)
    files = open_tensors(folder)
    names = normalised_names(files, str(folder))
    by_name = join_packed({name: files[raw] for name, raw in names.items()}, types, str(folder))
    if spec.tied_head:
        _resolve_tied_head(by_name, str(folder))
    needed = expected_tensors(modules)
    check_names(by_name, needed, spec, str(folder))
    for name, shape in needed.items():
        _check_tensor(name, by_name[name], shape)
    return {name: by_name[name] for name in needed}


def _resolve_tied_head(tensors: dict[str, Stored], where: str) -> None:
    """Put a tied head under the embedding's name, whichever name the file uses."""
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if head is None:
        return
    if embedding is None:
        tensors[EMBEDDING] = head
    elif not _equal(head, embedding):
        raise ExportError(
            f"{where}: lm_head.weight and embed_tokens.weight differ but tie_word_embeddings is "
            "true; set it to false in config.json if the head was trained on its own"
        )


def _equal(a: Stored, b: Stored) -> bool:
    comparable = len(a.shape) == 2 and a.type_name in FLOAT_TYPES
    if not comparable or (a.shape, a.type_name) != (b.shape, b.type_name):
        return False
    for start in range(0, a.shape[0], COMPARED_ROWS):
        stop = min(start + COMPARED_ROWS, a.shape[0])
        if not torch.equal(a.rows(start, stop), b.rows(start, stop)):
            return False
        a.release(start, stop)
        b.release(start, stop)
    return True


def _check_tensor(name: str, stored: Stored, shape: tuple[int, ...]) -> None:
    types = INTEGER_TYPES if name == TOKEN_ORDERING else FLOAT_TYPES
    if stored.type_name not in types:
        raise ExportError(
            f"{stored.path}: {name} is {shown(stored.type_name)}, needed {' or '.join(types)}; "
            "give the unquantized checkpoint"
        )
    if stored.shape != shape:
        raise ExportError(
            f"{stored.path}: {name} has shape {shown(list(stored.shape))}, config.json needs "
            f"{list(shape)}; config.json and weights are from different models"
        )


def _check_ordering(checkpoint: DrafterCheckpoint) -> None:
    """Check a centroid head's table, with which the runtimes index unchecked."""
    vocab_size = checkpoint.spec.vocab_size
    ordering = checkpoint._stored(TOKEN_ORDERING).rows(0, vocab_size).to(torch.int64)
    if not torch.equal(ordering.sort().values, torch.arange(vocab_size)):
        raise ExportError(
            f"{checkpoint.folder}: {TOKEN_ORDERING} does not name each of the {vocab_size} tokens "
            "once; save the drafter again with its ordering"
        )


def _is_finite(rows: Tensor) -> bool:
    """Finite numbers have a finite sum unless they are huge; then check each one."""
    return bool(rows.sum().isfinite()) or bool(torch.isfinite(rows).all())
