"""What experts cost: by how many there are, how many are active, how many tokens a call checks."""

import functools
import math
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from exporter.checkpoint.config import parse_target
from exporter.checkpoint.reader import TargetCheckpoint
from exporter.config import GraphShapes
from exporter.graph.target import Embedder, Target
from exporter.graph.weights import expected_tensors
from exporter.lower.onnx.lower import lower
from exporter.quantize import load_recipe, plan, size_bytes
from runtime_py.backends import Backend
from tests.benchmarks.backends import open_backend
from tests.benchmarks.inputs import Work, num_threads
from tests.benchmarks.record import Raw, Result, alternate, command, ratio
from tests.benchmarks.resident import resident

RECIPES = ("int8", "int4")
# Experts and active ones; the published model has 128 and 8.
MODELS = ((8, 8), (32, 8), (128, 8), (32, 32))
PUBLISHED = (128, 8)
WIDTHS = (1, 2, 4, 8)
POSITION = 100  # of the first token of a call
NUM_CALLS = 12  # of a sample, each over other tokens
VOCAB_SIZE = 8192
SHAPES = GraphShapes(prefill_lengths=(128,), verify_widths=WIDTHS[1:], cache_length=512)


class RandomWeights:
    """A checkpoint of 26B-A4B's widths with two layers, drawn as it is read."""

    def __init__(self, num_experts: int, num_active: int) -> None:
        self.spec = parse_target(_config(num_experts, num_active), "26B-A4B's widths")
        self._shapes = dict(expected_tensors([Embedder(self.spec), Target(self.spec)]))

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of length about 1; the same ones again and again, which takes less time."""
        shape = self._shapes[name]
        if len(shape) < 2:
            return torch.ones(stop - start)
        block = _block(shape[-1])
        return block.repeat(-(-(stop - start) // len(block)), 1)[: stop - start]

    def packed(self, _name: str) -> None:
        """No integers of its own."""

    def tensor(self, name: str) -> torch.Tensor:
        return self.rows(name, 0, self._shapes[name][0])


@functools.cache
def _block(num_columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_columns)
    return torch.randn(1000, num_columns, generator=generator) / math.sqrt(num_columns)


def measure(work: Work, num_repeats: int) -> Result:
    """Time decode and verify of two layers of 26B-A4B's widths."""
    raw: Raw = {}
    ratios: dict[str, float] = {}
    memory: Raw = {}
    sizes: dict[str, float] = {}
    for recipe in RECIPES:
        paths = {model: _lowered(work.folder, recipe, model) for model in MODELS}
        times = _times(recipe, paths, num_repeats)
        ratios |= _ratios(recipe, times)
        raw |= times
        path = paths[PUBLISHED]
        found = resident(path, num_threads(), work.weight_caches)
        weights = float((path.parent / "weights").read_text())
        memory[f"{recipe}: resident MB"] = [found.total]
        ratios[f"{recipe}: model file / weights"] = _file_mb(path) / weights
        ratios[f"{recipe}: resident / weights"] = found.total / weights
        ratios[f"{recipe}: anonymous / weights"] = found.anonymous / weights
        sizes[f"{recipe}: weights MB"] = weights
        for made in paths.values():
            shutil.rmtree(made.parent)
    settings = {
        "threads": num_threads(),
        "model": "2 layers of 26B-A4B's widths (hidden 2816, dense MLP 2112, experts 704), "
        f"vocabulary {VOCAB_SIZE}, ONNX; random weights, so tokens choose experts at random",
        "names": "experts/active",
        "calls": f"of the Backend, at position {POSITION}, each over tokens of its own",
    }
    return Result(settings=settings, raw=raw | memory, ratios=ratios, found=sizes)


def _times(recipe: str, paths: Mapping[tuple[int, int], Path], num_repeats: int) -> Raw:
    backends = {model: open_backend(path, num_threads(), path) for model, path in paths.items()}
    calls: dict[str, Callable[[], float]] = {}
    for model, backend in backends.items():
        backend.prefill([5] * POSITION, 0)
        for width in WIDTHS:
            calls[_key(recipe, model, width)] = partial(_sample, backend, width)
    raw = alternate(calls, num_repeats)
    for backend in backends.values():
        backend.close()
    return raw


def _key(recipe: str, model: tuple[int, int], width: int) -> str:
    return f"{recipe}, {model[0]}/{model[1]}, {width} tokens: ms"


def _sample(backend: Backend, width: int) -> float:
    tokens = np.random.default_rng(width).integers(VOCAB_SIZE, size=(NUM_CALLS, width)).tolist()
    start = time.perf_counter()
    for token_ids in tokens:
        backend.verify(token_ids, POSITION)
    return 1000 * (time.perf_counter() - start) / NUM_CALLS


def _ratios(recipe: str, raw: Raw) -> dict[str, float]:
    def between(above: tuple[tuple[int, int], int], below: tuple[tuple[int, int], int]) -> float:
        return ratio(raw, _key(recipe, *above), _key(recipe, *below))

    found = {
        f"{recipe}: decode, {total}/{active} / 8/8": between(((total, active), 1), ((8, 8), 1))
        for total, active in MODELS[1:]
    }
    for width in WIDTHS[1:]:
        for model in (PUBLISHED, (8, 8)):
            key = f"{recipe}, {model[0]}/{model[1]}: verify {width} / decode"
            found[key] = between((model, width), (model, 1))
    return found


def _lowered(folder: Path, recipe: str, model: tuple[int, int]) -> Path:
    """model.fill.onnx, with its weights' size in a file beside it."""
    out = folder / f"experts-{recipe}-{model[0]}-{model[1]}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    weights = RandomWeights(*model)
    checkpoint = cast(TargetCheckpoint, weights)
    chosen = load_recipe(recipe)
    files = lower(checkpoint, None, SHAPES, chosen, out)
    types = plan(checkpoint, chosen)
    total = sum(size_bytes(weights.shape(name), kind) for name, kind in types.items())
    (out / "weights").write_text(str(total / 1e6))
    return files[0]


def _file_mb(path: Path) -> float:
    return sum(file.stat().st_size for file in path.parent.glob("model.*")) / 1e6


def _config(num_experts: int, num_active: int) -> dict[str, Any]:
    return {
        "model_type": "gemma4_text",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 2816,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2112,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "attention_k_eq_v": True,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 1024,
        "final_logit_softcapping": 30.0,
        "enable_moe_block": True,
        "num_experts": num_experts,
        "top_k_experts": num_active,
        "moe_intermediate_size": 704,
    }


main = command("experts", measure)

if __name__ == "__main__":
    main()
