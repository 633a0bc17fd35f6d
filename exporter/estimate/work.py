"""What there is to export, in numbers: the input of an estimate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from exporter.config import GraphShapes, KvType
from exporter.graph.experts import is_stack
from exporter.graph.spec import DrafterSpec, LayerSpec, TargetSpec
from exporter.quantize import DRAFTER_PREFIX, KV_BYTES, Recipe, WeightType, plan, size_bytes
from runtime_py.bundle.kv_rows import resident_rows
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.inspection.memory import Contents, type_key

EMBEDDING, PER_LAYER_TABLE = "embed_tokens.weight", "embed_tokens_per_layer.weight"


class Source(Protocol):
    """The part of a Checkpoint that an estimate reads."""

    def names(self) -> Sequence[str]: ...
    def shape(self, name: str, /) -> Sequence[int]: ...
    def packed(self, name: str, /) -> Any: ...


class TargetSource(Source, Protocol):
    @property
    def spec(self) -> TargetSpec: ...


class DrafterSource(Source, Protocol):
    @property
    def spec(self) -> DrafterSpec: ...


@dataclass(frozen=True)
class Matrices:
    """Some matrices together."""

    num_weights: int = 0
    by_type: Mapping[str, int] = field(default_factory=dict)  # type_key -> bytes, without scales
    num_scales: int = 0

    @property
    def size_bytes(self) -> int:
        """As the recipe stores them, without scales."""
        return sum(self.by_type.values())

    def __add__(self, other: "Matrices") -> "Matrices":
        types = self.by_type.keys() | other.by_type.keys()
        return Matrices(
            self.num_weights + other.num_weights,
            {name: self.by_type.get(name, 0) + other.by_type.get(name, 0) for name in types},
            self.num_scales + other.num_scales,
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is exported."""

    tables: Matrices  # only looked up
    tied: Matrices  # looked up, and multiplied with as the head
    linears: Matrices  # every token is multiplied with them
    experts: Matrices  # every token is multiplied with some of them
    drafter_tables: Matrices
    drafter_linears: Matrices
    vector_bytes: int  # norms and other tensors that stay as they are
    text_bytes: int  # of the tokenizer
    vocab_size: int
    largest_matrix: int  # number of weights
    drafter_head: int  # number of weights of a dense head, which is among its linears; or 0
    num_layers: int
    num_filled_layers: int  # up to the last that owns KV rows: prefill ends there
    num_drafter_layers: int
    num_prefills: int  # LiteRT's graphs that prefill, one for each width
    num_verifies: int  # its graphs that verify or decode, one for each width
    kv_bytes: int  # the rows in memory when the context is full
    widened_bytes: int  # float32 copies of a layer's int8 rows, by target and drafter; 0: no int8

    @property
    def multiplied(self) -> Matrices:
        """The target's matrices that tokens are multiplied with."""
        return self.tied + self.linears + self.experts

    @property
    def all_multiplied(self) -> Matrices:
        """The same of target and drafter."""
        return self.multiplied + self.drafter_linears

    @property
    def looked_up(self) -> Matrices:
        """Target's and drafter's tables that are only looked up."""
        return self.tables + self.drafter_tables

    @property
    def stored(self) -> Matrices:
        """All matrices."""
        return self.all_multiplied + self.looked_up

    @property
    def graph_layers(self) -> Mapping[RuntimeName, int]:
        """Layers in all graphs of a runtime together.

        LiteRT has a graph for every width. The others have one that fills KV rows and one that
        finishes, and the last layer that owns rows is partly in each.
        """
        filled, verified = self.num_filled_layers, self.num_layers
        widths = self.num_prefills * filled + self.num_verifies * verified
        halves = verified + 1 + self.num_drafter_layers
        return {
            "litert": widths + self.num_drafter_layers,
            "executorch": halves,
            "onnx": halves,
        }

    def contents(self, runtime: RuntimeName) -> Contents:
        """What decides how much memory the bundle will take."""
        return Contents(
            matrices=self.all_multiplied.by_type,
            table_bytes=self.looked_up.size_bytes,
            kv_bytes=self.kv_bytes,
            widened_bytes=self.widened_bytes,
            graph_layers=self.graph_layers[runtime],
            vocab_size=self.vocab_size,
        )


def measure_work(
    target: TargetSource,
    drafter: DrafterSource | None,
    recipe: Recipe,
    shapes: GraphShapes,
    text_bytes: int,
    kv: KvType = "float32",
) -> Work:
    """Sort the matrices of target and drafter by what is done with them."""
    spec = target.spec
    tied = {EMBEDDING} & {spec.head_name}
    tables = {PER_LAYER_TABLE, EMBEDDING} - tied
    matrices, vector_bytes = _matrices(target, recipe, "")
    drafters: dict[str, Matrices] = {}
    drafter_tables: set[str] = set()
    if drafter is not None:
        drafters, more_bytes = _matrices(drafter, recipe, DRAFTER_PREFIX)
        vector_bytes += more_bytes
        drafter_tables = {drafter.spec.head_name} if drafter.spec.centroids else set()
    stacks = {name for name in matrices if is_stack(name)}
    return Work(
        tables=_sum(matrices, tables),
        tied=_sum(matrices, tied),
        linears=_sum(matrices, set(matrices) - tables - tied - stacks),
        experts=_sum(matrices, stacks),
        drafter_tables=_sum(drafters, drafter_tables),
        drafter_linears=_sum(drafters, set(drafters) - drafter_tables),
        vector_bytes=vector_bytes,
        text_bytes=text_bytes,
        vocab_size=spec.vocab_size,
        largest_matrix=max(matrix.num_weights for matrix in matrices.values()),
        drafter_head=0 if drafter_tables else _head_weights(drafter, drafters),
        num_layers=len(spec.layers),
        num_filled_layers=spec.kv_layers[-1].index + 1,
        num_drafter_layers=0 if drafter is None else len(drafter.spec.layers),
        num_prefills=len(shapes.prefill_lengths),
        num_verifies=1 + len(shapes.verify_widths),
        kv_bytes=KV_BYTES[kv]
        * sum(_kv_numbers(layer, spec, shapes.cache_length) for layer in spec.kv_layers),
        widened_bytes=0
        if kv == "float32"
        else (1 if drafter is None else 2) * 4 * _longest_row(spec) * shapes.cache_length,
    )


def _head_weights(drafter: DrafterSource | None, matrices: Mapping[str, Matrices]) -> int:
    return 0 if drafter is None else matrices[drafter.spec.head_name].num_weights


def _matrices(source: Any, recipe: Recipe, prefix: str) -> tuple[dict[str, Matrices], int]:
    """(every matrix by its name, bytes of all vectors)."""
    matrices = {}
    vector_bytes = 0
    for name, kind in plan(source, recipe, prefix).items():
        shape = source.shape(name)
        if len(shape) < 2:
            vector_bytes += 4 * math.prod(shape)
        else:
            dtype = f"{'int' if kind.is_integer else 'float'}{kind.bits}"
            stored = {type_key(dtype, kind.group_size): size_bytes(shape, kind)}
            matrices[name] = Matrices(math.prod(shape), stored, _num_scales(shape, kind))
    return matrices, vector_bytes


def _num_scales(shape: Sequence[int], kind: WeightType) -> int:
    if not kind.is_integer:
        return 0
    *above, num_columns = shape
    return math.prod(above) * (num_columns // kind.group_size if kind.group_size else 1)


def _sum(matrices: Mapping[str, Matrices], names: set[str]) -> Matrices:
    return sum((matrices[name] for name in names & set(matrices)), Matrices())


def _kv_numbers(layer: LayerSpec, spec: TargetSpec, cache_length: int) -> int:
    """How many numbers gemma-run keeps in memory for a layer's KV rows."""
    num_rows = cache_length
    if layer.kind == "sliding_attention":
        num_rows = resident_rows(spec.sliding_window, cache_length)
    return num_rows * _row_length(layer)


def _longest_row(spec: TargetSpec) -> int:
    """The longest row of the layers without a window."""
    full = (layer for layer in spec.kv_layers if layer.kind == "full_attention")
    return max((_row_length(layer) for layer in full), default=0)


def _row_length(layer: LayerSpec) -> int:
    """How many numbers a token has in a layer, keys and values."""
    return 2 * layer.num_kv_heads * layer.head_dim
