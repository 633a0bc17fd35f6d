"""Makes toy_onnx/ and toy_onnx_int8/: a small random Gemma 4 pair, lowered in float32.

The second has int8 KV rows. The files are kept in git, so that the backend is tested where torch is
not installed. `python -m tests.runtime_py.backends.toy_onnx` writes them and what the eager graph
computes.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.config import GraphShapes
from exporter.lower.onnx.lower import lower
from exporter.quantize import KvRange, Recipe, load_recipe
from tests.exporter.graph.eager import EagerModel
from tests.exporter.tiny_models import Shape, save_pair

FOLDER = Path(__file__).parent / "toy_onnx"
INT8_FOLDER = Path(__file__).parent / "toy_onnx_int8"
CACHE_LENGTH = 24
MODEL = Shape(
    layers="sff", vocab_size=48, hidden_size=16, intermediate_size=16, heads=2, kv_heads=1,
    head_dim=4, global_head_dim=8, shared=1, per_layer=4, drafter_layers="sf", drafter_hidden=8,
    softcap=4.0, eps=1e-2,
)  # fmt: skip
INT8_ROWS = {layer: KvRange(keys=4.0, values=2.0) for layer in (0, 1)}  # a few are clipped
SHAPES = GraphShapes(prefill_lengths=(8,), verify_widths=(2, 4), cache_length=CACHE_LENGTH)


def write_bundle(checkpoints: tuple[Path, Path], folder: Path, recipe: Recipe) -> None:
    folder.mkdir(exist_ok=True)
    target = read_checkpoint(checkpoints[0])
    drafter = read_drafter(checkpoints[1], target)
    for path in lower(target, drafter, SHAPES, recipe, folder):
        if path.suffix == ".onnx":
            model = onnx.load(path, load_external_data=False)
            del model.graph.value_info[:]  # half of the file, and nobody opens this one in Netron
            onnx.save(model, path)


def record(checkpoints: tuple[Path, Path], folder: Path, recipe: Recipe) -> None:
    """What the eager graph computes for one sequence that fills the cache."""
    eager = EagerModel(*checkpoints, CACHE_LENGTH, kv_ranges=recipe.kv_ranges)
    token_ids = torch.randint(48, (CACHE_LENGTH,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, hidden = eager.verify(token_ids, 0)
        drafts = [eager.draft(token_ids[i], hidden[i - 1], i) for i in range(1, CACHE_LENGTH)]
    np.savez(
        folder / "reference.npz",
        token_ids=token_ids.numpy(),
        logits=logits.numpy(),
        hidden=hidden.numpy(),
        draft_logits=np.stack([step[0].numpy() for step in drafts]),
        draft_hidden=np.stack([step[1].numpy() for step in drafts]),
    )


if __name__ == "__main__":
    float32 = load_recipe("float32")
    with tempfile.TemporaryDirectory() as scratch:
        pair = save_pair(MODEL, 1, Path(scratch))
        made = {FOLDER: float32, INT8_FOLDER: float32.with_int8_rows(INT8_ROWS)}
        for folder, recipe in made.items():
            write_bundle(pair, folder, recipe)
            record(pair, folder, recipe)
