"""A recipe is data: ordered rules from tensor names to weight types, first match wins."""

import logging
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from exporter.config import known_recipes, recipe_text
from exporter.errors import ExportError, nearest
from exporter.graph.spec import LayerSpec
from exporter.quantize.kv_rows import KvRange, widened
from runtime_py.bundle.manifest import Tolerances
from runtime_py.terminal.printable import shown

logger = logging.getLogger(__name__)

BITS = (32, 16, 8, 4, 2)
GRID_BITS = (4, 2)
RECIPE_KEYS = {"description", "rule", "check"}
RULE_KEYS = {"pattern", "layers", "bits", "group_size", "keep_grid"}
# What `layers` may say, and whether the layers that it means own KV rows.
LAYERS = {"own-kv": True, "shared-kv": False}
GROUP_MULTIPLE = 32  # XNNPACK's 4-bit kernels take groups of a multiple of it


@dataclass(frozen=True)
class WeightType:
    """How one tensor is stored: 8, 4 and 2 bits are symmetric integers with scales."""

    bits: int  # 32: float32, 16: float16
    group_size: int = 0  # neighbours in a row that share a scale; 0: the whole row
    keep_grid: bool = False  # rows that are a scale times such integers stay as they are

    @property
    def is_integer(self) -> bool:
        """Whether there are scales."""
        return self.bits < 16


FLOAT32 = WeightType(32)


@dataclass(frozen=True)
class Rule:
    """Tensors whose name matches the glob `pattern` are stored as `weight_type`.

    With `owns_kv`, only those of layers that own KV rows (True) or share another's (False).
    """

    pattern: str
    weight_type: WeightType
    owns_kv: bool | None = None

    def matches(self, name: str, layer: LayerSpec | None) -> bool:
        if not fnmatchcase(name, self.pattern):
            return False
        return self.owns_kv is None or (layer is not None and layer.owns_kv == self.owns_kv)


@dataclass(frozen=True)
class Recipe:
    """Which tensors become integers of how many bits."""

    name: str
    rules: tuple[Rule, ...]
    tolerances: Tolerances  # what `gemma-run check` demands of a bundle made with it
    kv_ranges: Mapping[int, KvRange] | None = None  # of int8 KV rows, by layer; None: float32

    def with_int8_rows(self, ranges: Mapping[int, KvRange]) -> "Recipe":
        """The same recipe with int8 KV rows of these ranges, and wider tolerances."""
        return replace(self, kv_ranges=ranges, tolerances=widened(self.tolerances))

    def weight_type(
        self, name: str, shape: Sequence[int], layer: LayerSpec | None = None
    ) -> WeightType:
        """The stored type of `name`; a row that groups do not divide has one scale instead.

        Args:
            name: the normalised tensor name; drafter names carry DRAFTER_PREFIX.
            shape: vectors and scalars (norms, layer scalars) always stay float32.
            layer: that the tensor belongs to, if any.

        Raises:
            ExportError: if no rule matches, or if packed rows would not end on a byte.
        """
        if len(shape) < 2:
            return FLOAT32
        rule = self.rule(name, layer)
        bits, group_size = rule.weight_type.bits, rule.weight_type.group_size
        per_byte = max(1, 8 // bits)
        if shape[-1] % per_byte:
            raise ExportError(
                f"recipe {self.name}: {name} has {shape[-1]} columns, {bits}-bit rows need a "
                f'multiple of {per_byte}; put a rule with bits = 8 for it before "{rule.pattern}"'
            )
        divided = group_size and shape[-1] % group_size == 0
        return rule.weight_type if divided else replace(rule.weight_type, group_size=0)

    def rule(self, name: str, layer: LayerSpec | None = None) -> Rule:
        """The first rule that matches, or an ExportError."""
        for rule in self.rules:
            if rule.matches(name, layer):
                return rule
        raise ExportError(
            f"recipe {self.name}: no rule matches {name}; end the recipe with a rule for "
            'pattern = "*"'
        )


class Layers(Protocol):
    @property
    def layers(self) -> Sequence[LayerSpec]: ...


class TensorSource(Protocol):
    """What `plan` needs of a checkpoint."""

    @property
    def spec(self) -> Layers: ...
    def names(self) -> Sequence[str]: ...
    def shape(self, name: str, /) -> Sequence[int]: ...
    def packed(self, name: str, /) -> "Packed | None": ...


class PackedKind(Protocol):
    @property
    def bits(self) -> int: ...
    @property
    def group_size(self) -> int: ...


class Packed(Protocol):
    """A matrix of integers that a checkpoint stores."""

    @property
    def kind(self) -> PackedKind: ...


DRAFTER_PREFIX = "drafter."  # how a recipe names the drafter's tensors


def plan(source: TensorSource, recipe: Recipe, prefix: str = "") -> dict[str, WeightType]:
    """Every tensor of a checkpoint with the type it will be stored as.

    `prefix` is put before the names when rules are matched (DRAFTER_PREFIX for a drafter). What
    the checkpoint stores as integers stays so, unless the recipe wants floating point.

    Raises:
        ExportError: if the recipe has no rule for a tensor, or integers are of an unknown kind.
    """
    return {name: _planned(source, name, recipe, prefix) for name in source.names()}


def _planned(source: TensorSource, name: str, recipe: Recipe, prefix: str) -> WeightType:
    wanted = recipe.weight_type(prefix + name, source.shape(name), layer_of(source, name))
    packed = source.packed(name)
    if packed is None or not wanted.is_integer:
        return wanted
    bits, group_size = packed.kind.bits, packed.kind.group_size
    if bits not in BITS or group_size % GROUP_MULTIPLE or (group_size and bits != 4):
        raise ExportError(
            f"{prefix}{name}: the checkpoint stores {bits}-bit integers with one scale for "
            f"{f'{group_size} weights' if group_size else 'a row'}, which no runtime here has; "
            "add --requantize to round them again, or give the unquantized checkpoint"
        )
    return WeightType(bits, group_size)


def layer_of(source: TensorSource, name: str) -> LayerSpec | None:
    """The layer that a tensor belongs to; None for tables, heads and others outside the layers."""
    match = re.match(r"layers\.(\d+)\.", name)
    return source.spec.layers[int(match[1])] if match else None


def report(source: TensorSource, recipe: Recipe, prefix: str = "") -> None:
    """Log what `plan` makes of a checkpoint, and which rows the recipe's groups do not divide."""
    types = plan(source, recipe, prefix)
    total = sum(size_bytes(source.shape(name), kind) for name, kind in types.items())
    whose = prefix.removesuffix(".") or "target"
    logger.info(
        "quantize    %s, %s, %d tensors, %.1f MB", recipe.name, whose, len(types), total / 1e6
    )
    kept = [name for name in types if source.packed(name) is not None and types[name].is_integer]
    if kept:
        logger.info("quantize    %s, %d of them as the checkpoint has them", whose, len(kept))
    undivided = [
        f"{name} ({source.shape(name)[-1]} columns)"
        for name, kind in types.items()
        if len(source.shape(name)) >= 2
        and name not in kept
        and recipe.rule(prefix + name, layer_of(source, name)).weight_type != kind
    ]
    if undivided:
        logger.warning(
            "quantize    one scale per row, because groups do not divide it: %s",
            ", ".join(undivided),
        )


def size_bytes(shape: Sequence[int], weight_type: WeightType) -> int:
    """Bytes of the packed values of one tensor, scales not counted."""
    count = 1
    for length in shape:
        count *= length
    return count * weight_type.bits // 8


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by its name, one of `known_recipes`, or from a TOML file.

    Raises:
        ExportError: if there is no such recipe, or if it says something unknown.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ExportError(f"{path}: no such recipe file; give a .toml file or a recipe's name")
        return _parse(path.stem, path.read_bytes())
    known, name = known_recipes(), str(name_or_path).lower()
    if name not in known:
        raise ExportError(
            f"recipe {shown(name_or_path)}: unknown; choose one of {', '.join(known)} or give the "
            f"path of a .toml file.{nearest(name, known)}"
        )
    return _parse(name, recipe_text(name).encode())


def _parse(name: str, content: bytes) -> Recipe:
    try:
        data = tomllib.loads(content.decode("utf-8"))
    except ValueError as error:  # of either step
        raise ExportError(f"recipe {name}: not valid TOML ({error}); correct the file") from error
    _refuse_unknown(name, "the recipe", data, RECIPE_KEYS)
    rules = data.get("rule", [])
    if not isinstance(rules, list) or not rules or not all(isinstance(r, dict) for r in rules):
        raise ExportError(f"recipe {name}: no [[rule]]; add one with pattern and bits")
    return Recipe(name, tuple(_parse_rule(name, rule) for rule in rules), _tolerances(name, data))


def _tolerances(name: str, data: dict[str, Any]) -> Tolerances:
    """[check]; a recipe without it is measured but not judged."""
    try:
        return Tolerances.model_validate(data.get("check", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("check", *(str(part) for part in first["loc"])))
        raise ExportError(f"recipe {name}: {where}: {first['msg']}; correct the file") from None


def _parse_rule(name: str, rule: dict[str, Any]) -> Rule:
    _refuse_unknown(name, "a [[rule]]", rule, RULE_KEYS)
    missing = {"pattern", "bits"} - set(rule)
    if missing:
        raise ExportError(f"recipe {name}: a [[rule]] lacks {', '.join(sorted(missing))}; add it")
    group_size = rule.get("group_size", 0)
    if not isinstance(rule["pattern"], str):
        raise ExportError(
            f"recipe {name}: pattern = {rule['pattern']}; give a glob in quotation marks"
        )
    if type(rule["bits"]) is not int or rule["bits"] not in BITS:
        raise ExportError(f"recipe {name}: bits = {rule['bits']}; choose one of {BITS}")
    _check_groups(name, rule["bits"], group_size)
    weight_type = WeightType(rule["bits"], group_size, _keep_grid(name, rule))
    return Rule(rule["pattern"], weight_type, _owns_kv(name, rule))


def _keep_grid(name: str, rule: dict[str, Any]) -> bool:
    keep = rule.get("keep_grid", False)
    if not isinstance(keep, bool):
        raise ExportError(f"recipe {name}: keep_grid = {keep}; give true or false")
    if keep and (rule["bits"] not in GRID_BITS or rule.get("group_size")):
        raise ExportError(
            f"recipe {name}: keep_grid with bits = {rule['bits']} and group_size = "
            f"{rule.get('group_size', 0)}; it is for whole rows of {GRID_BITS} bits"
        )
    return keep


def _owns_kv(name: str, rule: dict[str, Any]) -> bool | None:
    layers = rule.get("layers")
    if layers is None:
        return None
    if not isinstance(layers, str) or layers not in LAYERS:
        known = " or ".join(f'"{word}"' for word in LAYERS)
        raise ExportError(f"recipe {name}: layers = {layers}; give {known}, or leave it out")
    return LAYERS[layers]


def _check_groups(name: str, bits: int, group_size: object) -> None:
    if group_size == 0:
        return
    if type(group_size) is not int or group_size < 0 or group_size % GROUP_MULTIPLE:
        raise ExportError(
            f"recipe {name}: group_size = {group_size}; give a multiple of {GROUP_MULTIPLE}, or "
            "leave it out for one scale per row"
        )
    if bits != 4:
        raise ExportError(
            f"recipe {name}: group_size = {group_size} with bits = {bits}; only 4-bit weights "
            "have groups"
        )


def _refuse_unknown(name: str, where: str, data: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(data) - known)
    if unknown:
        raise ExportError(
            f"recipe {name}: unknown key {', '.join(unknown)} in {where}; "
            f"known are {', '.join(sorted(known))}"
        )
