"""How much memory a bundle needs to run, and whether a device has it.

What counts is what every token touches: the matrices it is multiplied with and the KV rows. Tables
that tokens are only looked up in stay in the mapped file.
"""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime_py.bundle.kv_rows import resident_rows
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.device.device import Device
from runtime_py.inspection.findings import Findings

SIZES_FILE = Path(__file__).with_name("sizes.toml")
TABLES = "tables"  # the line of an inspection that is looked up, not multiplied
# Python, the libraries, tokenizer and what lies between operators.
OVERHEAD_BYTES = 300_000_000
# Resident matrices over stored ones, at most: tests/benchmarks/results/runtimes.json has 4 bits as
# the worst case of each; onnxruntime's repacked form has scales of its own.
REPACKED: dict[RuntimeName, float] = {"litert": 1.3, "executorch": 1.2, "onnx": 2.1}
# Of experts, which only onnxruntime runs, each in a kernel of its own: 26B-A4B, full_size.json.
EXPERTS_REPACKED = 1.6
EXPERTS = "experts"  # the part that they are, in an inspection

Verdict = Literal["fits", "tight", "too large"]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The weights of one size with one recipe."""

    file_bytes: int  # all of them
    matrices_bytes: int  # of them, what tokens are multiplied with
    experts_bytes: int  # of those


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size of the published checkpoints with its drafter, as sizes.toml has it."""

    name: str
    runtime: RuntimeName  # the one that its export is for, unless told otherwise
    full_kv_bytes_per_token: int  # of layers that see the whole context
    sliding_kv_bytes_per_token: int
    sliding_window: int
    recipes: dict[str, Stored]

    def runs_on(self, runtime: RuntimeName, recipe: str) -> bool:
        """Whether gemma-export can lower it so."""
        if self.recipes[recipe].experts_bytes:
            return runtime == "onnx"
        return (runtime, recipe) != ("executorch", "mobile")

    def need_bytes(
        self, recipe: str, context_length: int, runtime: RuntimeName | None = None
    ) -> int:
        """Memory that it takes to run it, by the counted sizes; on the runtime of its export."""
        stored = self.recipes[recipe]
        runtime = runtime or self.runtime
        packed = _repacked_bytes(runtime, stored.matrices_bytes, stored.experts_bytes)
        return round(packed) + self.kv_bytes(context_length) + OVERHEAD_BYTES

    def kv_bytes(self, context_length: int) -> int:
        """Of the KV rows in memory, at most."""
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
            runtime=size["runtime"],
            full_kv_bytes_per_token=size["full_kv_bytes_per_token"],
            sliding_kv_bytes_per_token=size["sliding_kv_bytes_per_token"],
            sliding_window=size["sliding_window"],
            recipes={recipe: Stored(**stored) for recipe, stored in size["recipes"].items()},
        )
        for name, size in values.items()
    )


def bundle_need_bytes(found: Findings, runtime: RuntimeName) -> int:
    """Memory that a bundle's runtime takes, by what its files hold."""
    need = float(OVERHEAD_BYTES)
    experts = sum(weight.packed_bytes for weight in found.weights if weight.part == EXPERTS)
    for item in found.memory:
        if item.what.startswith("matrices"):
            need += _repacked_bytes(runtime, item.size_bytes, experts)
        elif item.what != TABLES:
            need += item.size_bytes
    return round(need)


def _repacked_bytes(runtime: RuntimeName, matrices: int, experts: int) -> float:
    return REPACKED[runtime] * (matrices - experts) + EXPERTS_REPACKED * experts


def verdict(need_bytes: int, device: Device) -> Verdict | None:
    """None where the device does not say how much memory it has.

    "tight": in memory that other programs hold now.
    """
    if device.memory_bytes is None:
        return None
    available = device.memory_bytes if device.available_bytes is None else device.available_bytes
    if need_bytes <= available:
        return "fits"
    return "tight" if need_bytes <= device.memory_bytes else "too large"
