"""What is read from a file is what the format's own library reads, and damage is one line."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from runtime_py.errors import RunError
from runtime_py.formats.flatbuffer import FlatbufferError
from runtime_py.formats.litertlm import read_sections
from runtime_py.formats.protobuf import ProtobufError
from runtime_py.inspection import INSPECT
from runtime_py.inspection.findings import Weight, size_bytes
from runtime_py.terminal.printable import one_line
from tests.runtime_py.backends.toys import CACHE_LENGTH, HIDDEN_SIZE, TOYS, VOCAB_SIZE

REFUSALS = (RunError, FlatbufferError, ProtobufError)


@pytest.fixture(params=sorted(TOYS))
def runtime(request) -> str:
    return request.param


@pytest.fixture
def found(runtime):
    return INSPECT[runtime](TOYS[runtime].bundle)


def test_parts_add_up_to_the_files(found):
    assert sum(found.parts.values()) == found.size_bytes
    assert all(size >= 0 for size in found.parts.values())


def test_sizes_are_those_of_the_types_and_shapes(found):
    assert found.weights
    for weight in found.weights:
        assert weight.size_bytes == size_bytes(weight.dtype, weight.shape), weight
    for constant in found.constants:
        assert constant.size_bytes == size_bytes(constant.dtype, constant.shape), constant


def test_the_table_and_the_kv_rows_are_found(found):
    tables = [weight for weight in found.weights if "lookup" in weight.uses]
    assert (VOCAB_SIZE, HIDDEN_SIZE) in [weight.shape for weight in tables]
    assert {buffer.num_rows for buffer in found.kv} == {CACHE_LENGTH}
    assert found.kv_bytes == CACHE_LENGTH * found.kv_bytes_per_token > 0


def test_the_dictionary_holds_what_json_can(found):
    values = json.loads(json.dumps(found.as_dict()))
    assert [w["name"] for w in values["weights"]] == [w.name for w in found.weights]
    assert values["parts"] == found.parts


def test_litert_agrees_with_its_own_schema():
    path = TOYS["litert"].bundle
    data = path.read_bytes()
    expected = Counter()
    for section in read_sections(path):
        if section.data_type != "tflite_model":
            continue
        model = schema.ModelT.InitFromPackedBuf(data[section.begin : section.end], 0)
        for graph in model.subgraphs:
            for operator in graph.operators:
                code = model.operatorCodes[operator.opcodeIndex].builtinCode
                if code in (
                    schema.BuiltinOperator.FULLY_CONNECTED,
                    schema.BuiltinOperator.EMBEDDING_LOOKUP,
                ):
                    tensor = graph.tensors[operator.inputs[1]]
                    buffer = model.buffers[tensor.buffer]
                    if buffer.size or buffer.data is not None:
                        size = buffer.size or len(buffer.data)
                        shape = tuple(map(int, tensor.shape))
                        expected[section.model_type, tensor.buffer, tensor.type, shape, size] = 1
    found = INSPECT["litert"](path).weights
    types = {"float32": 0, "int8": 9, "int4": 17}
    assert Counter((types[w.dtype], w.shape, w.size_bytes) for w in found) == Counter(
        key[2:] for key in expected
    )


def test_onnx_agrees_with_onnx():
    path = TOYS["onnx"].bundle
    found = INSPECT["onnx"](path)
    models = [onnx.load(file, load_external_data=False) for file in path.parent.glob("*.onnx")]
    assert len(found.signatures) == len(models)
    by_file = {signature.where: signature for signature in found.signatures}
    for model in models:
        (signature,) = (
            s for s in by_file.values() if [v.name for v in s.inputs] == names(model.graph.input)
        )
        assert [v.name for v in signature.outputs] == names(model.graph.output)
    stored = {
        (tensor.name, tuple(tensor.dims))
        for model in models
        for tensor in model.graph.initializer
        if any(
            node.op_type == "FusedMatMul" and node.input[1] == tensor.name
            for node in model.graph.node
        )
    }
    assert {shape for _, shape in stored} == {
        w.shape for w in found.weights if "matmul" in w.uses and w.dtype == "float32"
    }


def names(values) -> list[str]:
    return [value.name for value in values]


@pytest.mark.slow  # its reader imports all of torch
def test_executorch_agrees_with_its_own_reader():
    from executorch.exir._serialize._program import deserialize_pte_binary

    path = TOYS["executorch"].bundle
    found = INSPECT["executorch"](path)
    program = deserialize_pte_binary(path.read_bytes()).program
    plans = {plan.name: plan for plan in program.execution_plan if plan.inputs}
    assert {signature.name for signature in found.signatures} == set(plans)
    for signature in found.signatures:
        plan = plans[signature.name]
        for values, indices in ((signature.inputs, plan.inputs), (signature.outputs, plan.outputs)):
            shapes = [tuple(plan.values[index].val.sizes) for index in indices]
            assert [value.shape for value in values] == shapes


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_refused_or_read_but_never_crash(runtime, seed, tmp_path):
    draw = random.Random(seed)
    folder = tmp_path / "copy"
    shutil.copytree(TOYS[runtime].bundle.parent, folder, ignore=shutil.ignore_patterns("*.py"))
    path = folder / TOYS[runtime].bundle.name
    content = path.read_bytes()
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            # The tables lie at the beginning; flip there as often as anywhere.
            end = len(content) if draw.random() < 0.5 else min(len(content), 4096)
            damaged[draw.randrange(end)] = draw.randrange(256)
        if draw.random() < 0.3:
            damaged = damaged[: draw.randrange(len(damaged))]
        path.write_bytes(damaged)
        said = refusal(runtime, path)
        assert said is None or one_line(said) == said


def refusal(runtime: str, path: Path) -> str | None:
    """What reading it is answered with, nothing if it is read."""
    try:
        found = INSPECT[runtime](path)
    except REFUSALS as error:
        return str(error)
    assert sum(found.parts.values()) == found.size_bytes
    return None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("embed_tokens_per_layer.weight", "per-layer embedding"),
        ("layers.3.per_layer_input_gate.weight", "per-layer embedding"),
        ("layers.3.self_attn.q_proj.weight", "attention"),
        ("layers.3.mlp.up_proj.weight", "MLP"),
        ("drafter.layers.0.mlp.up_proj.weight", "drafter"),
        ("drafter.embed_tokens.weight", "drafter"),
        ("anything.else", "other matrices"),
    ],
)
def test_the_part_of_a_matrix(name, part):
    assert weight(name, ("lookup", "matmul")).part == part


def test_a_second_copy_of_the_tied_table_is_the_head():
    assert weight("embed_tokens.weight", ("matmul",)).part == "head"


def weight(name, uses) -> Weight:
    return Weight(
        name=name,
        dtype="int8",
        group_size=0,
        shape=(4, 4),
        size_bytes=16,
        scale_bytes=16,
        uses=uses,
        used_by=(),
    )


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [("int2", (3, 4), 3), ("int4", (3, 2), 3), ("int8", (3,), 3), ("float16", (3,), 6)],
)
def test_packed_sizes(dtype, shape, expected):
    assert size_bytes(dtype, shape) == expected


def test_a_missing_file_is_one_line(runtime, tmp_path):
    with pytest.raises(REFUSALS, match="No such file"):
        INSPECT[runtime](Path(tmp_path / TOYS[runtime].bundle.name))
