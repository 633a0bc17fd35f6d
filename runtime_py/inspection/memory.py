"""How much memory a bundle takes while it generates: one model, whoever asks.

gemma-export knows the Contents before the files exist, `inspect` and `doctor BUNDLE` read them from
the files, and `doctor` has them for every published size (sizes.py). The factors were measured:
factors.toml, which `python -m tests.benchmarks.memory` writes.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime_py.bundle.manifest import RuntimeName

FACTORS_FILE = Path(__file__).with_name("factors.toml")
Holding = Literal["mapped", "cache file", "anonymous"]

_PACKED: Mapping[RuntimeName, tuple[str, Holding]] = {
    "litert": ("matrices, repacked once by XNNPACK", "cache file"),
    "executorch": ("matrices, repacked by XNNPACK at every load", "anonymous"),
    "onnx": ("matrices, repacked at every load", "anonymous"),
}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What of a bundle decides how much memory one of its runtimes takes."""

    matrices: Mapping[str, int]  # type_key -> stored bytes of what every token is multiplied with
    table_bytes: int  # of tables that rows are looked up in, and nothing else
    kv_bytes: int  # of the rows that stay in memory, the context being full
    widened_bytes: int = 0  # float32 copies of int8 rows in a call, which only LiteRT makes
    graph_layers: int  # each layer once for every graph that it is in
    vocab_size: int


@dataclass(frozen=True)
class Memory:
    """Something that is in memory while the model runs."""

    what: str
    size_bytes: int
    holding: Holding
    said_by: Literal["file", "runtime"]  # a size in the file, or what was measured of the runtime


@dataclass(frozen=True)
class Factors:
    """What a runtime adds."""

    base_bytes: int  # Python, the libraries and the runtime
    graph_layer_bytes: int  # operators of a layer in a graph, and what they hand each other
    repacked: Mapping[str, float]  # type_key -> resident over stored bytes


@functools.cache
def _factors() -> tuple[Mapping[RuntimeName, Factors], float, int]:
    """(by runtime, resident share of the tables, bytes of the tokenizer for a token)."""
    values = tomllib.loads(FACTORS_FILE.read_text(encoding="utf-8"))
    runtimes = {name: Factors(**values[name]) for name in _PACKED}
    return runtimes, values["tables_resident"], values["tokenizer_bytes_per_token"]


def type_key(dtype: str, group_size: int) -> str:
    """How factors.toml calls a type of weights: "int4", or "int4 in groups"."""
    return f"{dtype} in groups" if group_size else dtype


def packed_bytes(runtime: RuntimeName, matrices: Mapping[str, int]) -> int:
    """Of matrices as the runtime keeps them: type_key -> stored bytes.

    A type that this project never writes counts as it is stored.
    """
    repacked = _factors()[0][runtime].repacked
    return round(sum(size * repacked.get(kind, 1) for kind, size in matrices.items()))


def memory_of(runtime: RuntimeName, contents: Contents) -> tuple[Memory, ...]:
    """What is resident while it generates, item by item; `total_bytes` adds them up.

    Pages of mapped files count as they were found: the system may drop them and read them again.
    """
    runtimes, tables_resident, tokenizer_bytes = _factors()
    factors = runtimes[runtime]
    packing, holding = _PACKED[runtime]
    kv_bytes = contents.kv_bytes + (contents.widened_bytes if runtime == "litert" else 0)
    graphs = factors.base_bytes + factors.graph_layer_bytes * contents.graph_layers
    touched = round(tables_resident * contents.table_bytes)
    vocabulary = tokenizer_bytes * contents.vocab_size
    rest = (
        Memory("table rows in use", touched, "mapped", "runtime"),
        Memory("KV rows of a full context", kv_bytes, "anonymous", "file"),
        Memory("tokenizer", vocabulary, "anonymous", "runtime"),
        Memory("Python, runtime, graphs", graphs, "anonymous", "runtime"),
    )
    return (Memory(packing, packed_bytes(runtime, contents.matrices), holding, "runtime"), *rest)


def total_bytes(memory: tuple[Memory, ...]) -> int:
    """The one figure that every command prints."""
    return sum(item.size_bytes for item in memory)


def memory_text(num_bytes: int) -> str:
    """As every command prints it: "81 MB", "1.74 GB"."""
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.2f} GB"
