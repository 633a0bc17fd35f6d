"""A token's numbers are the same in a call of any width, and no call copies a KV buffer."""

from dataclasses import replace

import pytest
import torch
from ai_edge_litert.interpreter import Interpreter

from exporter.checkpoint import read_checkpoint
from exporter.config import GraphShapes
from exporter.lower.litert import lower
from exporter.lower.litert.kv_cache import kv_shapes
from exporter.quantize import load_recipe
from tests.exporter.graph.eager import causal_mask
from tests.exporter.lower.litert.files import OPERATOR_NAMES, File, read
from tests.exporter.tiny_models import Shape, save, target_model

ROWS = 256
TOKENS = 200
# Norms over enough numbers for the order of a sum to show; windows that leave rows behind, and are
# 128 rows long in decode and 192 in verify.
SHAPE = Shape(
    layers="sfsf", hidden_size=96, heads=4, kv_heads=1, head_dim=64, global_head_dim=128,
    window=65, shared=2, per_layer=8,
)  # fmt: skip
WIDTHS = {"decode": 1, "verify": 4}


@pytest.fixture(scope="module", params=[1, 2], ids=["one KV head", "two KV heads"])
def lowered(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("widths")
    shape = replace(SHAPE, kv_heads=request.param)
    target = read_checkpoint(save(target_model(shape, 1), folder / "target"))
    shapes = GraphShapes(prefill_lengths=(), verify_widths=(4,), cache_length=ROWS)
    lower(target, None, shapes, load_recipe("float32"), folder)
    return target.spec, read(folder / "prefill_decode.tflite")


def test_decode_writes_and_says_what_verify_does_to_the_bit(lowered):
    spec, file = lowered
    generator = torch.manual_seed(2)
    embeddings = torch.randn(1, TOKENS, spec.hidden_size, generator=generator)
    per_layer = torch.randn(1, TOKENS, len(spec.layers), spec.per_layer_size, generator=generator)
    interpreter = Interpreter(model_path=str(file.path))
    by_width = []
    for signature, width in WIDTHS.items():
        runner = interpreter.get_signature_runner(signature)
        kv = {name: torch.zeros(s).numpy() for name, s in kv_shapes(spec.layers, ROWS).items()}
        logits = []
        for start in range(0, TOKENS, width):
            chosen = slice(start, start + width)
            input_pos = torch.arange(start, start + width, dtype=torch.int32)
            outputs = runner(
                embeddings=embeddings[:, chosen].numpy(),
                per_layer_embeddings=per_layer[:, chosen].numpy(),
                input_pos=input_pos.numpy(),
                mask=causal_mask(input_pos, ROWS, -2.4e38).numpy(),
                **kv,
            )
            kv = {name: outputs[name] for name in kv}
            logits.append(torch.from_numpy(outputs["logits"]))
        by_width.append({"logits": torch.cat(logits, dim=1)} | kv)
    decoded, verified = by_width
    for name, array in decoded.items():
        assert torch.equal(torch.as_tensor(array), torch.as_tensor(verified[name])), name


def operators(file: File, subgraph):
    for operator in subgraph.operators:
        name = OPERATOR_NAMES[file.model.operatorCodes[operator.opcodeIndex].builtinCode]
        yield name, list(operator.inputs), list(operator.outputs)


def test_a_kv_buffer_is_streamed_or_a_window_of_it_is_taken(lowered):
    """XNNPACK packs what is on the right of a product, all of it, in every call."""
    _, file = lowered
    for subgraph in file.model.subgraphs:
        found = list(operators(file, subgraph))
        buffers = {made[0] for name, _, made in found if name == "DYNAMIC_UPDATE_SLICE"}
        assert buffers
        readers = {
            (name, inputs.index(buffer))
            for name, inputs, _ in found
            for buffer in buffers & set(inputs)
        }
        assert readers == {("GATHER", 0), ("BATCH_MATMUL", 0)}


def test_between_a_square_and_its_mean_there_is_nothing(lowered):
    """XNNPACK adds in another order where there is, which was so in decode and nowhere else."""
    _, file = lowered
    for subgraph in file.model.subgraphs:
        found = list(operators(file, subgraph))
        makers = {made[0]: name for name, _, made in found}
        assert {makers[inputs[0]] for name, inputs, _ in found if name == "MEAN"} == {"MUL"}
