"""A token's numbers are the same in a call of any width, and no call copies a KV buffer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter

from exporter.checkpoint.reader import read_checkpoint
from exporter.config import GraphShapes
from exporter.lower.litert.kv_cache import kv_shapes
from exporter.lower.litert.lower import lower
from exporter.quantize import KvRange, load_recipe
from tests.exporter.graph.eager import causal_mask
from tests.exporter.lower.litert.files import OPERATOR_NAMES, TYPE_NAMES, File, read
from tests.exporter.tiny_models import Shape, save, target_model

ROWS = 256
TOKENS = 200
# Norms over enough numbers for the order of a sum to show; windows that leave rows behind, and are
# 128 rows long in decode and 192 in verify.
SHAPE = Shape(
    layers="sf", hidden_size=96, heads=4, kv_heads=1, head_dim=64, global_head_dim=128,
    window=65, per_layer=8,
)  # fmt: skip
WIDTHS = {"decode": 1, "verify": 4}
RANGE = KvRange(keys=3.0, values=3.5)  # a few numbers are larger


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1, "float32"), id="one KV head"),
        pytest.param((2, "float32"), id="two KV heads", marks=pytest.mark.slow),
        pytest.param((2, "int8"), id="two KV heads, int8 rows"),
    ],
)
def lowered(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("widths")
    kv_heads, rows = request.param
    shape = replace(SHAPE, kv_heads=kv_heads)
    target = read_checkpoint(save(target_model(shape, 1), folder / "target"))
    shapes = GraphShapes(prefill_lengths=(), verify_widths=(4,), cache_length=ROWS)
    recipe = load_recipe("float32")
    if rows == "int8":
        recipe = recipe.with_int8_rows({layer.index: RANGE for layer in target.spec.kv_layers})
    lower(target, None, shapes, recipe, folder)
    return target.spec, read(folder / "prefill_decode.tflite"), np.dtype(rows)


def test_decode_writes_and_says_what_verify_does_to_the_bit(lowered):
    spec, file, dtype = lowered
    generator = torch.manual_seed(2)
    embeddings = torch.randn(1, TOKENS, spec.hidden_size, generator=generator)
    per_layer = torch.randn(1, TOKENS, len(spec.layers), spec.per_layer_size, generator=generator)
    interpreter = Interpreter(model_path=str(file.path))
    by_width = []
    for signature, width in WIDTHS.items():
        runner = interpreter.get_signature_runner(signature)
        kv = {name: np.zeros(s, dtype) for name, s in kv_shapes(spec.layers, ROWS).items()}
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
    """XNNPACK packs what is on the right of a product, all of it, in every call.

    int8 rows are gathered as they are; where all are looked at, they are made float32 once.
    """
    _, file, dtype = lowered
    for subgraph in file.model.subgraphs:
        found = list(operators(file, subgraph))
        buffers = {made[0] for name, _, made in found if name == "DYNAMIC_UPDATE_SLICE"}
        assert buffers
        readers = [
            (name, inputs.index(buffer))
            for name, inputs, _ in found
            for buffer in buffers & set(inputs)
        ]
        if dtype == np.int8:
            assert sorted(readers) == 2 * [("DEQUANTIZE", 0)] + 2 * [("GATHER", 0)]
            widened = [(inputs[0], made[0]) for n, inputs, made in found if n == "DEQUANTIZE"]
            buffers = {made for whole, made in widened if whole in buffers}
            readers = [(n, i.index(b)) for n, i, _ in found for b in buffers & set(i)]
            assert set(readers) == {("BATCH_MATMUL", 0)}
        else:
            assert set(readers) == {("GATHER", 0), ("BATCH_MATMUL", 0)}


def test_kv_tensors_are_of_that_type_and_carry_their_scale(lowered):
    _, file, dtype = lowered
    for definition in file.model.signatureDefs:
        tensors = file.model.subgraphs[definition.subgraphIndex].tensors
        for entry in (*definition.inputs, *definition.outputs):
            name, tensor = entry.name.decode(), tensors[entry.tensorIndex]
            if dtype == np.int8 and name.startswith("kv_cache_"):
                scale = RANGE.key_scale if "_k_" in name else RANGE.value_scale
                assert TYPE_NAMES[tensor.type] == "INT8"
                assert list(tensor.quantization.scale) == [np.float32(scale)]
                assert list(tensor.quantization.zeroPoint) == [0]
            elif name != "input_pos":
                assert TYPE_NAMES[tensor.type] == "FLOAT32"


def test_between_a_square_and_its_mean_there_is_nothing(lowered):
    """XNNPACK adds in another order where there is, which was so in decode and nowhere else."""
    _, file, _ = lowered
    for subgraph in file.model.subgraphs:
        found = list(operators(file, subgraph))
        makers = {made[0]: name for name, _, made in found}
        assert {makers[inputs[0]] for name, inputs, _ in found if name == "MEAN"} == {"MUL"}
