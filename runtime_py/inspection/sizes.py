"""The published sizes, as sizes.toml has them: what `doctor` judges a device by."""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime_py.bundle.kv_rows import resident_rows
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.inspection.memory import Contents, memory_of, total_bytes

SIZES_FILE = Path(__file__).with_name("sizes.toml")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The weights of one size with one recipe, the drafter's included, without scales."""

    table_bytes: int  # only looked up
    matrices: Mapping[str, int]  # by type_key

    @property
    def size_bytes(self) -> int:
        """All of them."""
        return self.table_bytes + self.matrices_bytes

    @property
    def matrices_bytes(self) -> int:
        """Those that tokens are multiplied with."""
        return sum(self.matrices.values())


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size of the published checkpoints with its drafter."""

    name: str
    has_experts: bool
    vocab_size: int
    full_kv_bytes_per_token: int  # of layers that see the whole context
    sliding_kv_bytes_per_token: int
    sliding_window: int
    graph_layers: Mapping[RuntimeName, int]
    recipes: Mapping[str, Stored]

    @property
    def runtime(self) -> RuntimeName:
        """The one that its export is for by default."""
        return "onnx" if self.has_experts else "litert"

    def runs_on(self, runtime: RuntimeName, recipe: str) -> bool:
        """Whether gemma-export can lower it so."""
        if self.has_experts:
            return runtime == "onnx"
        return (runtime, recipe) != ("executorch", "mobile")

    def need_bytes(self, recipe: str, context_length: int, runtime: RuntimeName) -> int:
        """Memory while it generates with a context of so many tokens."""
        stored = self.recipes[recipe]
        contents = Contents(
            matrices=stored.matrices,
            table_bytes=stored.table_bytes,
            kv_bytes=self.kv_bytes(context_length),
            graph_layers=self.graph_layers[runtime],
            vocab_size=self.vocab_size,
        )
        return total_bytes(memory_of(runtime, contents))

    def kv_bytes(self, context_length: int) -> int:
        """Of the float32 KV rows in memory, the context being full."""
        sliding_rows = resident_rows(self.sliding_window, context_length)
        sliding_bytes = self.sliding_kv_bytes_per_token * sliding_rows
        return self.full_kv_bytes_per_token * context_length + sliding_bytes


@functools.cache
def known_sizes() -> tuple[Size, ...]:
    """The sizes that gemma-export knows by name, smallest first."""
    values = tomllib.loads(SIZES_FILE.read_text(encoding="utf-8"))
    return tuple(
        Size(
            name=name,
            recipes={recipe: Stored(**stored) for recipe, stored in size.pop("recipes").items()},
            **size,
        )
        for name, size in values.items()
    )
