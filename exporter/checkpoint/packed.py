"""Read weights stored as integers and scales: the pack-quantized format of compressed-tensors.

The integers result from quantization-aware training, so the bundle gets them unchanged.

Format: compressed-tensors 0.20, compressors/pack_quantized. Of `x.weight` the file holds
`x.weight_packed` [O, I * bits / 32] int32, the first value in the lowest bits and 2^(bits - 1)
added to each, `x.weight_scale` [O, 1] or [O, I / group size] and `x.weight_shape`, (O, I).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.checkpoint.files import FLOAT_TYPES, INTEGER_TYPES, Stored
from exporter.errors import ExportError
from runtime_py.terminal.printable import shown

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
PARTS = ("weight_packed", "weight_scale", "weight_shape")
WORD_BITS = 32
PACKED_BITS = (2, 4, 8)  # whole numbers fit in a byte

# Keys that do not change how weights are stored; any other that is set is refused by name.
_HARMLESS = {
    "ignore",
    "quantization_status",
    "global_compression_ratio",
    "version",
    "run_compressed",
}
_SCHEME_HARMLESS = {"targets", "weights", "format"}
_NEXT = "give the unquantized checkpoint"


@dataclass(frozen=True)
class PackedType:
    """How one group of matrices is stored."""

    bits: int
    group_size: int  # consecutive numbers in a row that share a scale; 0: the whole row


@dataclass(frozen=True)
class PackedTensor:
    """A matrix stored as integers with scales; its rows are their exact products in float32."""

    words: Stored
    scale: Stored
    num_columns: int
    kind: PackedType

    @property
    def path(self) -> Path:
        return self.words.path

    @property
    def type_name(self) -> str:
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.words.shape[0], self.num_columns

    @property
    def num_rows(self) -> int:
        return self.words.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:
        values = self.integers(start, stop).to(torch.float32)
        scales = self.scales(start, stop).reshape(stop - start, -1, 1)
        num_groups = max(1, scales.shape[1])
        groups = values.reshape(stop - start, num_groups, self.num_columns // num_groups)
        return (groups * scales).reshape(values.shape)

    def release(self, start: int, stop: int) -> None:
        self.words.release(start, stop)
        self.scale.release(start, stop)

    def integers(self, start: int, stop: int) -> Tensor:
        """The integers [R, I], int8."""
        bits = self.kind.bits
        words = self.words.rows(start, stop)
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        # The first byte holds a word's lowest bits on every machine that torch supports.
        values = (words.view(torch.uint8).unsqueeze(-1) >> shifts) & (2**bits - 1)
        values = values.reshape(stop - start, -1)[:, : self.num_columns]
        signed: Tensor = values.to(torch.int16) - 2 ** (bits - 1)
        return signed.to(torch.int8)

    def scales(self, start: int, stop: int) -> Tensor:
        """The scales [R], or [R, I / group size] for groups, float32.

        Raises:
            ExportError: if a scale is not a positive number.
        """
        scales = self.scale.rows(start, stop).to(torch.float32)
        if not bool(((scales > 0) & scales.isfinite()).all()):
            raise ExportError(
                f"{self.path}: a weight_scale is not a positive number; download it again"
            )
        return scales if self.kind.group_size else scales[:, 0]


def packed_types(config: Mapping[str, Any], where: str) -> tuple[PackedType, ...]:
    """How the configuration says integers are stored; empty for an unquantized checkpoint.

    Raises:
        ExportError: for any other quantization, by name.
    """
    text = config.get("text_config")
    _refuse_mlx(config.get("quantization"), where)
    found = config.get("quantization_config")
    if found is None and isinstance(text, dict):
        found = text.get("quantization_config")
    if found is None:
        return ()
    _refuse_mlx(found, where)
    where = f"{where}: quantization_config"
    if not isinstance(found, dict):
        raise ExportError(f"{where} is {shown(repr(found))}, needed an object; {_NEXT}")
    _require(where, found, "quant_method", (METHOD,))
    _require(where, found, "format", (FORMAT,))
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ExportError(f"{where}: no config_groups; download config.json again")
    _refuse_others(where, found, {"quant_method", "format", "config_groups", *_HARMLESS})
    return tuple(_packed_type(groups[name], f"{where}: {shown(name)}") for name in groups)


def _refuse_mlx(found: object, where: str) -> None:
    """MLX writes the same object under quantization and quantization_config."""
    if isinstance(found, dict) and "quant_method" not in found and "group_size" in found:
        raise ExportError(
            f"{where}: quantized by MLX ({shown(repr(found.get('bits')))} bits in groups of "
            f"{shown(repr(found['group_size']))}); {_NEXT} that it was made from"
        )


def _packed_type(scheme: object, where: str) -> PackedType:
    weights = scheme.get("weights") if isinstance(scheme, dict) else None
    if not isinstance(scheme, dict) or not isinstance(weights, dict):
        raise ExportError(f"{where}: no weights, needed their scheme; {_NEXT}")
    _refuse_others(where, scheme, _SCHEME_HARMLESS)
    _require(where, scheme, "format", (FORMAT, None))
    where = f"{where}: weights"
    _require(where, weights, "type", ("int", None))
    _require(where, weights, "symmetric", (True, None))
    _require(where, weights, "dynamic", (False, None))
    _require(where, weights, "actorder", (False, None, "weight", "static"))
    _require(where, weights, "num_bits", PACKED_BITS)
    group_size = weights.get("group_size")
    strategy = weights.get("strategy") or ("group" if group_size not in (None, -1) else "channel")
    _require(where, {"strategy": strategy}, "strategy", ("group", "channel"))
    if strategy == "channel":
        return PackedType(weights["num_bits"], 0)
    if type(group_size) is not int or group_size < 1:
        raise ExportError(f"{where}: group_size is {shown(repr(group_size))}, needed a number")
    return PackedType(weights["num_bits"], group_size)


def _require(where: str, values: Mapping[str, Any], key: str, allowed: tuple[Any, ...]) -> None:
    found = values.get(key)
    if not any(type(found) is type(value) and found == value for value in allowed):
        raise ExportError(
            f"{where}: {key} is {shown(repr(found))}, supported: "
            f"{' or '.join(repr(value) for value in allowed if value is not None)}; {_NEXT}"
        )


def _refuse_others(where: str, values: Mapping[str, Any], known: set[str]) -> None:
    for key, value in values.items():
        if value and key not in known:
            raise ExportError(
                f"{where}: {shown(key)} is {shown(repr(value))}, which is not supported; {_NEXT}"
            )


def join_packed(
    tensors: Mapping[str, Stored], types: tuple[PackedType, ...], where: str
) -> dict[str, Stored]:
    """Join each `x.weight_packed` with its scale and shape into one `x.weight`.

    Raises:
        ExportError: if parts are missing, or disagree with each other or with `types`.
    """
    if not types:
        return dict(tensors)
    joined: dict[str, Stored] = {}
    for name, stored in tensors.items():
        module, _, part = name.rpartition(".")
        if part not in PARTS:
            joined[name] = stored
        elif part == PARTS[0]:
            parts = [tensors.get(f"{module}.{other}") for other in PARTS]
            joined[f"{module}.weight"] = _join(parts, types, f"{where}: {shown(module)}")
    return joined


def _join(parts: list[Stored | None], types: tuple[PackedType, ...], where: str) -> PackedTensor:
    words, scale, stored_shape = parts
    if words is None or scale is None or stored_shape is None:
        raise ExportError(f"{where}: needed {', '.join(PARTS)}; download the checkpoint again")
    if (
        words.type_name != "I32"
        or scale.type_name not in FLOAT_TYPES
        or stored_shape.type_name not in INTEGER_TYPES
        or stored_shape.shape != (2,)
        or (len(words.shape), len(scale.shape)) != (2, 2)
    ):
        raise ExportError(
            f"{where}: {PARTS[0]} is {_kind(words)}, {PARTS[1]} {_kind(scale)}, {PARTS[2]} "
            f"{_kind(stored_shape)}; needed matrices of I32 and of floats, and two integers"
        )
    num_rows, num_columns = (int(length) for length in stored_shape.rows(0, 2))
    fitting = [
        kind
        for kind in types
        if words.shape == (num_rows, -(-num_columns * kind.bits // WORD_BITS))
        and scale.shape == (num_rows, _num_scales(num_columns, kind))
    ]
    if not fitting:
        raise ExportError(
            f"{where}: {list(words.shape)} words and {list(scale.shape)} scales for a matrix "
            f"[{num_rows}, {num_columns}]: not what config.json says; download both again"
        )
    return PackedTensor(words, scale, num_columns, fitting[0])


def _kind(stored: Stored) -> str:
    return shown(f"{stored.type_name} {list(stored.shape)}", 40)


def _num_scales(num_columns: int, kind: PackedType) -> int:
    if not kind.group_size:
        return 1
    return num_columns // kind.group_size if num_columns % kind.group_size == 0 else 0
