"""A PEFT LoRA adapter, merged into a checkpoint row by row as it is read.

The arithmetic is PEFT's merge_and_unload in float32, bit for bit: row + (B's row @ A) * scaling.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.checkpoint.files import FLOAT_TYPES, Stored, StoredTensor, open_file, read_json
from exporter.checkpoint.kinds import refuse_pointers
from exporter.checkpoint.names import normalised_names
from exporter.errors import ExportError
from runtime_py.terminal.printable import shown

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

# With fewer rows, BLAS uses kernels that sum in another order (MKL: seen below 16).
MIN_ROWS = 32

MAX_NUMBER = 10**6  # largest rank and lora_alpha

# LoRA options that do not change the merged weight; any other that is set is refused by name.
HARMLESS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "unsloth_fixed",
    "unsloth_version",
    "use_rslora",
}
# Initializations that leave the base model's weights unchanged. PiSSA, OLoRA, CorDA and LoftQ
# change them, so their adapters do not apply to the base model that the user has.
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")

_PREFIX = "base_model.model."
_OF_DEFAULT = re.compile(r"(\.lora_[AB]|\.lora_embedding_[AB]|\.modules_to_save)\.default(?=\.|$)")
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<part>A\.weight|B\.weight|embedding_A|embedding_B)")
MERGE_FIRST = (
    "merge it yourself (peft: merge_and_unload, then save_pretrained) and give that folder"
)


@dataclass(frozen=True)
class Delta:
    """What the adapter adds to one matrix: scaling * B @ A; to an embedding, the transpose."""

    a: StoredTensor  # [r, I]; for an embedding [r, O]
    b: StoredTensor  # [O, r]; for an embedding [I, r]
    scaling: float
    of_embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        shape = self.b.shape[0], self.a.shape[1]
        return shape[::-1] if self.of_embedding else shape

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1 as float32."""
        first = max(0, min(start, self.shape[0] - MIN_ROWS))
        last = max(stop, min(self.shape[0], first + MIN_ROWS))
        rank = self.a.shape[0]
        if self.of_embedding:
            a = self.a.rows(0, rank)[:, first:last].to(torch.float32)
            product = (_whole(self.b) @ a).T
        else:
            product = self.b.rows(first, last).to(torch.float32) @ _whole(self.a)
        return product[start - first : stop - first] * self.scaling


@dataclass(frozen=True)
class MergedTensor:
    """A stored matrix plus an adapter's delta."""

    base: Stored
    delta: Delta

    @property
    def path(self) -> Path:
        return self.base.path

    @property
    def type_name(self) -> str:
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def num_rows(self) -> int:
        return self.base.num_rows

    def rows(self, start: int, stop: int) -> Tensor:
        return self.base.rows(start, stop).to(torch.float32) + self.delta.rows(start, stop)

    def release(self, start: int, stop: int) -> None:
        self.base.release(start, stop)


@dataclass(frozen=True)
class Adapter:
    """An opened adapter; its tensors have the normalised names of those they change."""

    folder: Path
    base_name: str | None  # the model that it says it was trained on
    keeps_tie: bool  # whether embedding and head stay one tensor
    replaced: Mapping[str, StoredTensor]  # whole tensors (modules_to_save)
    deltas: Mapping[str, Delta]
    ignored: tuple[str, ...]  # modules of other modalities

    @property
    def names(self) -> set[str]:
        return {*self.replaced, *self.deltas}

    def merged(self, name: str, base: Stored) -> Stored:
        """The tensor `name` with this adapter merged in.

        Raises:
            ExportError: if its shape is not the adapter's.
        """
        changed = self.replaced.get(name, base)
        delta = self.deltas.get(name)
        shape = changed.shape if delta is None else delta.shape
        if not changed.shape == base.shape == shape:
            found = shape if changed.shape == base.shape else changed.shape
            raise ExportError(
                f"{self.folder / WEIGHTS_FILE}: {name} has shape {shown(list(found))}, the model's "
                f"has {list(base.shape)}; give the model it was trained on, or if its vocabulary "
                f"was enlarged, {MERGE_FIRST}"
            )
        return changed if delta is None else MergedTensor(changed, delta)


def read_adapter(folder: Path) -> Adapter:
    """Open the adapter in a folder.

    Raises:
        ExportError: if it is not a plain LoRA adapter, saying what it is and what to do.
    """
    config = read_adapter_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise ExportError(f"{folder}: {_no_weights(folder)}")
    files = open_file(weights)
    for name, stored in files.items():
        if stored.type_name not in FLOAT_TYPES:
            raise ExportError(
                f"{weights}: {shown(name)} is {shown(stored.type_name)}, needed "
                f"{' or '.join(FLOAT_TYPES)}; save the adapter again"
            )
    base_name = config.get("base_model_name_or_path")
    plain = {_plain(name): stored for name, stored in files.items()}
    if len(plain) < len(files):
        raise ExportError(f"{weights}: some tensors are in it twice; save the adapter again")
    parts = {name: match for name in plain if (match := _PART.fullmatch(name))}
    modules = dict.fromkeys(match["module"] for match in parts.values())
    short = normalised_names(modules, str(weights))
    whole = {name.replace(".base_layer.", "."): name for name in plain if name not in parts}
    replaced = normalised_names(whole, str(weights))
    adapter = Adapter(
        folder=folder,
        base_name=base_name if isinstance(base_name, str) else None,
        keeps_tie=config.get("ensure_weight_tying") is True,
        replaced={name: plain[whole[raw]] for name, raw in replaced.items()},
        deltas={
            f"{name}.weight": _delta(raw, plain, config, folder) for name, raw in short.items()
        },
        ignored=tuple(sorted({*modules, *whole} - {*short.values(), *replaced.values()})),
    )
    if not adapter.names:
        raise ExportError(f"{weights}: changes no tensor of a text model; give another adapter")
    return adapter


def _plain(name: str) -> str:
    """The name without peft's wrapper and the adapter's name, which models in memory have."""
    plain = _OF_DEFAULT.sub(r"\1", name.removeprefix(_PREFIX))
    return plain.replace(".modules_to_save.", ".")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json, which must be a plain LoRA adapter's.

    Raises:
        ExportError: as read_adapter.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        what = f"no {CONFIG_FILE}, so not a PEFT adapter" if isdir(folder) else "no such folder"
        raise ExportError(
            f"{shown(folder, 300)}: {what}; give the folder that save_pretrained of a PEFT model "
            "wrote"
        )
    refuse_pointers(folder)
    config = read_json(path)
    if isinstance(config.get("lora_parameters"), dict):
        raise ExportError(
            f"{path}: an MLX adapter (lora_parameters), needed one of PEFT; fuse it (mlx_lm.fuse "
            "--dequantize) and give the folder that it writes as --model"
        )
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ExportError(
            f"{path}: peft_type is {shown(repr(kind))}, only LORA is merged here; {MERGE_FIRST}"
        )
    for key, value in config.items():
        if value and key not in HARMLESS:
            raise ExportError(
                f"{path}: {shown(key)} is {shown(repr(value))}: not a plain LoRA; {MERGE_FIRST}"
            )
    beginning = config.get("init_lora_weights", True)
    if not any(beginning is plain or beginning == plain for plain in PLAIN_BEGINNINGS):
        raise ExportError(
            f"{path}: init_lora_weights is {shown(repr(beginning))}, which changes the base model "
            f"too; {MERGE_FIRST}"
        )
    return config


def _no_weights(folder: Path) -> str:
    if (folder / PICKLE_FILE).is_file():
        return (
            f"{PICKLE_FILE} is a pickle, which can run code when opened; save the adapter again "
            "with safetensors (peft: save_pretrained writes it)"
        )
    return f"no {WEIGHTS_FILE}; give the whole adapter folder"


def _delta(
    module: str, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], folder: Path
) -> Delta:
    where = f"{folder / WEIGHTS_FILE}: {shown(module)}"
    of_embedding = f"{module}.lora_embedding_A" in tensors
    names = ("lora_embedding_A", "lora_embedding_B") if of_embedding else _LINEAR_NAMES
    pair = [tensors.get(f"{module}.{name}") for name in names]
    a, b = pair
    if a is None or b is None:
        raise ExportError(f"{where}: only one of {' and '.join(names)}; save the adapter again")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise ExportError(
            f"{where}: {names[0]} is {shown(list(a.shape))} and {names[1]} is "
            f"{shown(list(b.shape))}, needed matrices of one rank; save the adapter again"
        )
    rank = _by_pattern(config, "r", "rank_pattern", module, folder)
    alpha = _by_pattern(config, "lora_alpha", "alpha_pattern", module, folder)
    if rank != a.shape[0]:
        raise ExportError(
            f"{where}: rank {a.shape[0]}, {CONFIG_FILE} says {rank:g}; give the {CONFIG_FILE} "
            "that was saved with these weights"
        )
    root = math.sqrt(a.shape[0]) if config.get("use_rslora") else a.shape[0]
    return Delta(a, b, alpha / root, of_embedding)


_LINEAR_NAMES = ("lora_A.weight", "lora_B.weight")


def _by_pattern(config: Mapping[str, Any], rest: str, key: str, module: str, folder: Path) -> float:
    """The value that PEFT uses: that of the first pattern that matches the end of the module's
    name, or else the one for all other modules."""
    found = config.get(rest)
    patterns = config.get(key) or {}
    where = f"{folder / CONFIG_FILE}: {rest} and {key}"
    if not isinstance(patterns, dict):
        raise ExportError(f"{where} is {shown(repr(patterns))}, needed an object")
    for pattern, value in patterns.items():
        if _matches(pattern, module, where):
            found = value
            break
    if (
        not isinstance(found, int | float)
        or isinstance(found, bool)
        or not abs(found) <= MAX_NUMBER
    ):
        raise ExportError(
            f"{where}: {shown(repr(found))} for {shown(module)}, needed a number up to "
            f"{MAX_NUMBER}; save the adapter again"
        )
    return float(found)


def _matches(pattern: str, module: str, where: str) -> bool:
    # The pattern is untrusted, and a repeated group can make matching take forever.
    if len(pattern) > 500 or re.search(r"\)[*+{]", pattern):
        raise ExportError(f"{where}: pattern {shown(pattern)} is too complex; {MERGE_FIRST}")
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise ExportError(
            f"{where}: pattern {shown(pattern)} is not a regular expression ({error}); correct it"
        ) from None


def _whole(stored: StoredTensor) -> Tensor:
    return stored.rows(0, stored.shape[0]).to(torch.float32)
