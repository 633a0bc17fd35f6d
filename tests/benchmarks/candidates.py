"""Every runtime with every recipe it has, as model files of one checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from runtime_py.backends import Backend
from tests.benchmarks.backends import model_files, open_backend
from tests.benchmarks.inputs import TINY, Graphs, Work, num_threads

STACK_LAYERS = 4
STACK_ROWS = 2048  # KV rows
TINY_ROWS = 512
RECIPES = {
    "LiteRT": ("float32", "int8", "int4"),
    "ExecuTorch": ("float32", "int8", "int4", "int4-groups"),
    "ONNX": ("float32", "int8", "int4", "int4-groups"),
}
ROUTES = {"LiteRT": "ours", "ExecuTorch": "executorch", "ONNX": "onnx"}
NAMES = tuple(f"{runtime} {recipe}" for runtime in RECIPES for recipe in RECIPES[runtime])
PAIRS = (  # (one, the one it is compared with)
    *((f"{other} {recipe}", f"LiteRT {recipe}") for other in ROUTES if other != "LiteRT"
      for recipe in RECIPES["LiteRT"]),
    *((f"{other} int4-groups", "LiteRT int4") for other in ROUTES if other != "LiteRT"),
    *((f"ONNX {recipe}", f"ExecuTorch {recipe}") for recipe in RECIPES["ONNX"]),
    *((f"{runtime} int4", f"{runtime} int8") for runtime in ROUTES),
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One runtime with one recipe: a model file, and what its runtime adds to it."""

    name: str
    model: Path
    num_threads: int

    @property
    def weight_caches(self) -> Path:
        return self.model.with_name("weight_caches")

    def open(self) -> Backend:
        return open_backend(self.model, self.num_threads, self.weight_caches)

    @cached_property
    def sizes_mb(self) -> dict[str, float]:
        """Of the weights in the recipe's bits, and of the files once the model was loaded."""
        weight_bytes = int(self.model.with_name("weight_bytes").read_text())
        return {
            "weights": weight_bytes / 1e6,
            "model file": _megabytes(model_files(self.model)),
            "weight cache": _megabytes(self.weight_caches.glob("*")),
        }


def tiny(work: Work) -> Mapping[str, Candidate]:
    """The tiny model, which one thread runs fastest."""
    graphs = {name: Graphs(recipe=_recipe(name), route=_route(name), cache_length=TINY_ROWS)
              for name in NAMES}  # fmt: skip
    return {name: Candidate(name, work.model(TINY, one), 1) for name, one in graphs.items()}


def stack(
    work: Work, names: tuple[str, ...] = NAMES, cache_length: int = STACK_ROWS
) -> Mapping[str, Candidate]:
    """The stack of E2B's widths."""
    folder = work.stack(STACK_LAYERS)
    graphs = {name: Graphs(recipe=_recipe(name), route=_route(name), cache_length=cache_length)
              for name in names}  # fmt: skip
    return {
        name: Candidate(name, work.model(folder, one), num_threads())
        for name, one in graphs.items()
    }


def _route(name: str) -> str:
    return ROUTES[name.split()[0]]


def _recipe(name: str) -> str:
    return name.split()[1]


def _megabytes(paths: Iterator[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / 1e6
