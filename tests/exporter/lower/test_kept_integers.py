"""The integers of a QAT checkpoint are in the files that were made from it, bit for bit."""

import dataclasses

import numpy as np
import pytest
import torch

from exporter.checkpoint.reader import TargetCheckpoint, read_checkpoint
from exporter.config import GraphShapes
from exporter.errors import ExportError
from exporter.lower import litert
from exporter.lower.executorch.lower import lower as lower_executorch
from exporter.lower.litert.lower import lower as lower_litert
from exporter.lower.onnx.lower import lower as lower_onnx
from exporter.quantize import load_recipe, plan
from tests.exporter.checkpoint.packed_checkpoints import SHAPE, save_packed
from tests.exporter.graph.eager import EagerModel
from tests.exporter.lower.executorch.programs import Program
from tests.exporter.lower.litert.files import read
from tests.exporter.lower.onnx.files import read_graphs, stored_tensors
from tests.exporter.tiny_models import drafter_model, save

SMALL = dataclasses.replace(SHAPE, layers="sf", shared=0, centroids=0)
SHAPES = GraphShapes(prefill_lengths=(5,), verify_widths=(2,), cache_length=16)
DECODE = GraphShapes(prefill_lengths=(), verify_widths=(), cache_length=16)
RECIPE = load_recipe("int8")  # what the targets choose: it decides for all other matrices only


def kept(checkpoint: TargetCheckpoint) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> integers [O, I], scales [O, groups]."""
    found = {}
    for name in checkpoint.names():
        packed = checkpoint.packed(name)
        if packed is not None:
            rows = checkpoint.shape(name)[0]
            scales = packed.scales(0, rows).reshape(rows, -1)
            found[name] = packed.integers(0, rows).numpy(), scales.numpy()
    assert len(found) == 18
    return found


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> TargetCheckpoint:
    return read_checkpoint(save_packed(tmp_path_factory.mktemp("groups"), SMALL))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> TargetCheckpoint:
    """One scale per row."""
    options = {"strategy": "channel", "group_size": None}
    return read_checkpoint(save_packed(tmp_path_factory.mktemp("rows"), SMALL, **options))


def unpacked(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    values = np.frombuffer(data, np.uint8)
    halves = np.stack((values & 15, values >> 4), -1).reshape(shape)
    return (halves ^ 8).astype(np.int8) - 8


def test_in_a_tflite(rows, tmp_path):
    lower_litert(rows, None, DECODE, RECIPE, tmp_path)  # LiteRT has a graph for each width
    stored = {s.name: s for use in read(tmp_path / "prefill_decode.tflite").weights() for s in use}
    for name, (integers, scales) in kept(rows).items():
        assert stored[name].type == "INT4"
        np.testing.assert_array_equal(unpacked(stored[name].data, integers.shape), integers)
        np.testing.assert_array_equal(stored[name].scales, scales[:, 0])
    assert stored["per_layer_model_projection.weight"].type == "INT8"


def test_litert_says_which_runtime_has_the_groups(groups):
    with pytest.raises(ExportError, match=r"every 32 weights.*executorch or onnx.*--requantize"):
        litert.LOWERING.check(plan(groups, RECIPE))
    litert.LOWERING.check(plan(dataclasses.replace(groups, keeps_integers=False), RECIPE))


def test_in_onnx_files(groups, tmp_path):
    lower_onnx(groups, None, SHAPES, RECIPE, tmp_path)
    stored = {
        name: tensor
        for graph in read_graphs(tmp_path).values()
        for name, tensor in stored_tensors(graph).items()
    }
    for name, (integers, scales) in kept(groups).items():
        name = f"target.{name}"
        scale = stored[f"{name.removesuffix('.weight')}.scales"]
        found = unpacked((stored[name].read(tmp_path) ^ 0x88).tobytes(), integers.shape)
        np.testing.assert_array_equal(found, integers)
        np.testing.assert_array_equal(scale.read(tmp_path).reshape(scales.shape), scales)


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("kind", ["groups", "rows"])
def test_in_a_pte(kind, request, tmp_path):
    checkpoint = request.getfixturevalue(kind)
    path = tmp_path / "model.pte"
    lower_executorch(checkpoint, None, SHAPES, RECIPE, path)
    data = path.read_bytes()
    for name, (integers, scales) in kept(checkpoint).items():
        # XNNPACK has them from 0 to 15, two in a byte, the first in its low half.
        shifted = (integers.reshape(-1) + 8).astype(np.uint8)
        assert (shifted[0::2] | shifted[1::2] << 4).tobytes() in data, name
        # Scales of groups are bfloat16 there; those of published checkpoints are, too.
        stored = torch.from_numpy(scales)
        stored = stored.bfloat16().view(torch.int16) if kind == "groups" else stored
        assert stored.numpy().tobytes() in data, name
    drafter = save(drafter_model(SMALL, 4), tmp_path / "drafter")
    eager = EagerModel(checkpoint.folder, drafter, SHAPES.cache_length)
    token_ids = torch.tensor([3, 60, 7, 7, 12])
    eager.prefill(token_ids[:3], 0)
    expected, _ = eager.verify(token_ids[3:], 3)
    program = Program(path)
    program.fill(token_ids[:3], 0)
    found, _ = program.verify(token_ids[3:], 3)
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.05
