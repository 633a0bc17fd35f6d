"""What an inspection finds, the same for every runtime."""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime_py.bundle.kv_rows import resident_rows
from runtime_py.bundle.manifest import RuntimeName, SlidingEntry
from runtime_py.inspection.memory import Contents, Memory, memory_of, total_bytes, type_key

Use = Literal["lookup", "matmul"]
Size = int | None  # None: free, chosen with every call

_LAYER = re.compile(r"(drafter\.)?layers\.\d+\.")
_NUMBER = re.compile(r"\d+")
DRAFTER_PREFIX = "drafter."
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"
ITEM_BITS = {
    "bool": 8,
    "int2": 2,
    "int4": 4,
    "uint4": 4,
    "int8": 8,
    "uint8": 8,
    "float16": 16,
    "bfloat16": 16,
    "int16": 16,
    "float32": 32,
    "int32": 32,
    "float64": 64,
    "int64": 64,
}
# Where a matrix belongs, by its name; the first that matches.
PARTS = (
    (r"drafter\.", "drafter"),
    (r"embed_tokens_per_layer\.|per_layer_model_projection\.", "per-layer embedding"),
    (r"layers\.\d+\.per_layer_", "per-layer embedding"),
    (r"lm_head\.", "head"),
    (r"embed_tokens\.", "embedding"),
    (r"layers\.\d+\.self_attn\.", "attention"),
    (r"layers\.\d+\.(router|experts)\.", "experts"),
    (r"layers\.\d+\.mlp\.", "MLP"),
)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A matrix as a file stores it: one range of bytes, however many graphs use it."""

    name: str  # the checkpoint's, a drafter's behind DRAFTER_PREFIX
    dtype: str  # "float32", "float16", "int8", "int4" or "int2"
    group_size: int  # neighbours in a row that share a scale; 0: the whole row, or no scales
    shape: tuple[int, ...]  # of the numbers, not of the bytes
    size_bytes: int
    scale_bytes: int
    uses: tuple[Use, ...]
    used_by: tuple[str, ...]  # signatures, methods or graphs

    @property
    def part(self) -> str:
        """What the matrix is for; a tied table's second copy, stored for the head, is "head"."""
        if self.name == TABLE and self.uses == ("matmul",):
            return "head"
        found = (part for pattern, part in PARTS if re.match(pattern, self.name))
        return next(found, "other matrices")


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Everything else with numbers in it: norms, scalars, shapes of reshapes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Value:
    """An input or output."""

    name: str
    dtype: str
    shape: tuple[Size, ...]

    @property
    def size_bytes(self) -> int:
        """0 where a size is free."""
        return size_bytes(self.dtype, [size or 0 for size in self.shape])


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A graph that can be called."""

    name: str
    where: str  # section or file
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A contiguous part of a file."""

    file: str
    name: str
    begin: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class KvBuffer:
    """Keys or values of one layer."""

    name: str
    dtype: str
    num_rows: int
    row_bytes: int
    window: int | None = None  # rows seen by a layer that slides

    @property
    def size_bytes(self) -> int:
        """Of all rows."""
        return self.num_rows * self.row_bytes

    @property
    def resident_bytes(self) -> int:
        """In memory when the context is full."""
        rows = resident_rows(self.window, self.num_rows) if self.window else self.num_rows
        return rows * self.row_bytes


@dataclass(frozen=True, kw_only=True)
class Findings:
    """One runtime's files, read without the runtime."""

    runtime: RuntimeName
    files: dict[str, int]  # name -> bytes
    sections: tuple[Section, ...]
    weights: tuple[Weight, ...]
    constants: tuple[Constant, ...]
    signatures: tuple[Signature, ...]
    kv: tuple[KvBuffer, ...]
    notes: tuple[str, ...] = field(default=())  # what is claimed, and what the files do not say

    @property
    def size_bytes(self) -> int:
        return sum(self.files.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of the files by what they are for; they add up to the files."""
        parts: dict[str, int] = {}
        for weight in self.weights:
            parts[weight.part] = parts.get(weight.part, 0) + weight.size_bytes
        parts["scales"] = sum(weight.scale_bytes for weight in self.weights)
        parts["norms and constants"] = sum(constant.size_bytes for constant in self.constants)
        parts["graphs and padding"] = self.size_bytes - sum(parts.values())
        return parts

    @property
    def kv_layers(self) -> set[int]:
        """The numbers of the layers that own rows."""
        numbers = (_NUMBER.findall(buffer.name)[:1] for buffer in self.kv)
        return {int(number) for found in numbers for number in found}

    def with_windows(self, sliding: SlidingEntry | None) -> "Findings":
        """The same, with the windows of the sliding layers that the file lists."""
        if sliding is None:
            return self
        layers = set(map(str, sliding.layers))
        kv = tuple(
            dataclasses.replace(buffer, window=sliding.window)
            if layers.intersection(_NUMBER.findall(buffer.name)[:1])
            else buffer
            for buffer in self.kv
        )
        return dataclasses.replace(self, kv=kv)

    @property
    def kv_types(self) -> tuple[str, ...]:
        """The types of the buffers: one, except in files of other exporters."""
        return tuple(sorted({buffer.dtype for buffer in self.kv}))

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(buffer.row_bytes for buffer in self.kv)

    @property
    def kv_bytes(self) -> int:
        """Size of all rows, for the whole context."""
        return sum(buffer.size_bytes for buffer in self.kv)

    @property
    def kv_resident_bytes(self) -> int:
        """The part in memory when the context is full."""
        return sum(buffer.resident_bytes for buffer in self.kv)

    @property
    def contents(self) -> Contents:
        """What decides how much memory it takes."""
        matrices: dict[str, int] = {}
        for weight in self.weights:
            if "matmul" in weight.uses:
                kind = type_key(weight.dtype, weight.group_size)
                matrices[kind] = matrices.get(kind, 0) + weight.size_bytes
        tables = [weight for weight in self.weights if "lookup" in weight.uses]
        layers = {
            (match[0], graph)
            for weight in self.weights
            if (match := _LAYER.match(weight.name))
            for graph in weight.used_by
        }
        return Contents(
            matrices=matrices,
            table_bytes=sum(table.size_bytes for table in tables if "matmul" not in table.uses),
            kv_bytes=self.kv_resident_bytes,
            widened_bytes=self._widened_bytes(),
            graph_layers=len(layers),
            vocab_size=max((table.shape[0] for table in tables), default=0),
        )

    def _widened_bytes(self) -> int:
        """Of the largest layer without a window, once for the target and once for the drafter."""
        layers: dict[str, int] = {}
        for buffer in self.kv:
            if buffer.dtype == "int8" and buffer.window is None:
                layer = "".join(_NUMBER.findall(buffer.name)[:1])
                layers[layer] = layers.get(layer, 0) + 4 * buffer.size_bytes
        models = {weight.name.startswith(DRAFTER_PREFIX) for weight in self.weights}
        return len(models) * max(layers.values(), default=0)

    @property
    def memory(self) -> tuple[Memory, ...]:
        """What is resident while it generates."""
        return memory_of(self.runtime, self.contents)

    @property
    def memory_bytes(self) -> int:
        """Of all of it."""
        return total_bytes(self.memory)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        weights = [{**dataclasses.asdict(w), "part": w.part} for w in self.weights]
        return {
            **dataclasses.asdict(self),
            "weights": weights,
            "size_bytes": self.size_bytes,
            "parts": self.parts,
            "memory": [dataclasses.asdict(item) for item in self.memory],
            "memory_bytes": self.memory_bytes,
            "kv_types": self.kv_types,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes": self.kv_bytes,
            "kv_resident_bytes": self.kv_resident_bytes,
        }


def size_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Size of packed numbers; 0 for an unknown type."""
    return -(-math.prod(shape) * ITEM_BITS.get(dtype, 0) // 8)


def group_size(num_columns: int, num_groups: int) -> int:
    """0 for one scale per row, or none."""
    return num_columns // num_groups if num_groups > 1 else 0
