"""Three graphs say what the graph says, over one KV buffer and one file of weights."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from exporter.checkpoint.reader import (
    DrafterCheckpoint,
    TargetCheckpoint,
    read_checkpoint,
    read_drafter,
)
from exporter.config import GraphShapes
from exporter.lower.onnx.lower import lower
from exporter.quantize import KvRange, WeightType, load_recipe, plan
from runtime_py.backends.onnx.backend import open_onnx
from runtime_py.inspection.onnx import inspect
from tests.exporter.graph.eager import EagerModel
from tests.exporter.lower.onnx.files import read_graphs, stored_tensors
from tests.exporter.packing import dequantized, integers_and_scales, unpacked
from tests.exporter.tiny_models import Shape, save_pair

CACHE_LENGTH = 56
PREFILL_LENGTH = 9
SHAPES = GraphShapes(
    prefill_lengths=(PREFILL_LENGTH,), verify_widths=(2, 4), cache_length=CACHE_LENGTH
)
# Sizes as in real models, where they are multiples of 32, but for PLE: elsewhere what an operator
# makes of the last few elements of a tensor may depend on how many there are.
PLE = Shape(
    layers="sfsf", hidden_size=32, intermediate_size=64, kv_heads=1, shared=2, doubled=True,
    head_dim=32, global_head_dim=64, per_layer=16, centroids=16, top_k=3, drafter_layers="sf",
    drafter_hidden=32,
)  # fmt: skip
DENSE = Shape(
    layers="sf", hidden_size=64, intermediate_size=64, heads=4, kv_heads=2, global_kv_heads=1,
    head_dim=32, global_head_dim=160, tied=False, drafter_layers="sf", drafter_hidden=32,
)  # fmt: skip
EXPERTS = Shape(
    layers="sf", hidden_size=64, intermediate_size=64, heads=4, kv_heads=2, global_kv_heads=1,
    head_dim=32, global_head_dim=64, experts=8, active_experts=3, expert_size=32,
    drafter_layers="sf", drafter_hidden=32,
)  # fmt: skip
# Of the largest logit, against the graph with the stored weights: what is left is the activations'
# rounding to int8, which random models magnify; a weight that is wrong makes 0.4 and more.
ERRORS = {
    "float32": 1e-5,
    "int8": 0.15,
    "int4": 0.15,
    "int4-groups": 0.15,
    "mobile": 0.15,
    "float16": 1e-5,
}
FLOATING = ("float32", "float16")
# A number that is a bit off may be rounded to the integer beside.
ROUNDED_ROWS = 2e-2
INT8_ROWS = {layer: KvRange(keys=4.0, values=3.0) for layer in (0, 1)}  # a few are larger
# onnxruntime's builds for the CPU, the web and Android have all of these.
OPERATORS = {
    "FusedMatMul": "float32 matrices, stored as the checkpoint has them: [O, I]",
    "MatMulNBits": "matrices of integers",
    "GatherBlockQuantized": "rows of tables of integers",
    "Expand": "scales of rows to scales of blocks, once; coordinates of the rows written",
    "RMSNormalization": "norms",
    "ScatterND": "writes KV rows in place",
    "QuantizeLinear": "int8 KV rows, before they are written",
    "DequantizeLinear": "the same, where they are looked at",
    "MatMul": "attention",
    "Gemm": "the centroid head, whose matrix is gathered",
    "Softmax": "attention",
    "Slice": "the KV rows present; halves for the rotation",
    "Transpose": "heads before tokens",
    "Reshape": "no work",
    "Unsqueeze": "no work",
    "Squeeze": "no work",
    "Split": "parts of heads longer than 128; the tokens of each expert",
    "Concat": "halves of the rotation; coordinates; what the drafter takes; what experts make",
    "Gather": "rows of float32 tables; one layer's share of the per-layer embeddings",
    "Shape": "the number of tokens",
    "Range": "positions",
    "Cast": "integers to floating point",
    "Clip": "the first row of the window",
    "Where": "masks",
    "GreaterOrEqual": "masks",
    "Less": "masks",
    "And": "masks",
    "Mul": "arithmetic",
    "Add": "arithmetic",
    "Sub": "arithmetic",
    "Div": "blocks of rows",
    "Cos": "the rotation",
    "Sin": "the rotation",
    "Tanh": "GELU and the soft cap",
    "TopK": "the centroid head; the router, and the order of tokens by expert",
    "GatherElements": "the chosen experts' shares",
    "Equal": "how many tokens each expert gets",
    "ReduceSum": "likewise; sums of shares and of what experts make",
    "ReduceMin": "the centroid head",
    "ScatterElements": "the centroid head",
    "GatherND": "the centroid head",
}


@dataclass(frozen=True)
class Lowered:
    """One exported pair and its checkpoints."""

    folder: Path
    recipe: str
    kv_ranges: dict[int, KvRange] | None
    checkpoints: tuple[Path, Path]
    target: TargetCheckpoint
    drafter: DrafterCheckpoint

    def types(self, prefix: str) -> dict[str, WeightType]:
        checkpoint = self.drafter if prefix else self.target
        return plan(checkpoint, load_recipe(self.recipe), prefix)


@pytest.fixture(
    scope="module",
    params=[
        "ple-mobile",  # int2, int4 and int8
        "experts-int4",
        "dense-float32+rows",  # int8 KV rows
        # A quarter of a minute each.
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "ple-float32",
                "ple-float16",
                "ple-int8",
                "ple-int4",
                "ple-int4-groups",
                "ple-int8+rows",
                "dense-float32",
                "dense-int4",
                "experts-float32",
                "experts-float16",
                "experts-int8",
                "experts-int4-groups",
            )
        ),
    ],
)
def lowered(request, tmp_path_factory) -> Lowered:
    kind, _, rest = request.param.partition("-")
    name, _, rows = rest.partition("+")
    recipe = load_recipe(name).with_int8_rows(INT8_ROWS) if rows else load_recipe(name)
    shape = {"ple": PLE, "dense": DENSE, "experts": EXPERTS}[kind]
    folder = tmp_path_factory.mktemp("lowered")
    checkpoints = save_pair(shape, 1, folder)
    target = read_checkpoint(checkpoints[0])
    drafter = read_drafter(checkpoints[1], target)
    lower(target, drafter, SHAPES, recipe, folder)
    return Lowered(folder, name, recipe.kv_ranges, checkpoints, target, drafter)


@pytest.fixture
def backend(lowered):
    backend = open_onnx(lowered.folder / "model.fill.onnx", num_threads=2)
    yield backend
    backend.close()


@pytest.fixture
def eager(lowered) -> EagerModel:
    """The graph with the weights as the file has them."""
    eager = EagerModel(*lowered.checkpoints, CACHE_LENGTH, kv_ranges=lowered.kv_ranges)
    parts = [(eager.drafter, lowered.drafter, "drafter.")]
    parts += [(m, lowered.target, "") for m in (eager.embedder, eager.target)]
    if eager.per_layer_embedder is not None:
        parts.append((eager.per_layer_embedder, lowered.target, ""))
    for module, checkpoint, prefix in parts:
        types = lowered.types(prefix)
        for name, parameter in module.named_parameters():
            if types[name].bits < 32:
                stored = torch.from_numpy(dequantized(checkpoint, name, types[name]))
                parameter.data = stored.reshape(parameter.shape)
    return eager


@pytest.fixture
def token_ids() -> torch.Tensor:
    return torch.randint(
        0, PLE.vocab_size, (CACHE_LENGTH,), generator=torch.Generator().manual_seed(3)
    )


def error(found: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.abs(found - expected.numpy()).max() / expected.abs().max())


@torch.no_grad()
def test_prefill_decode_verify_and_draft_equal_the_eager_graph(lowered, backend, eager, token_ids):
    """Also far past the sliding window, which is 5 rows, and over a block of 16 rows."""
    allowed, ids = ERRORS[lowered.recipe], token_ids.tolist()
    if lowered.kv_ranges is not None:
        allowed = max(allowed, ROUNDED_ROWS)
    backend.prefill(ids[:11], 0)
    eager.prefill(token_ids[:11], 0)
    position = 11
    for width in (1, 4, 2, 1, 3, 4, 4):
        logits, hidden = backend.verify(ids[position : position + width], position)
        expected, expected_hidden = eager.verify(token_ids[position : position + width], position)
        assert error(logits, expected) < allowed
        assert error(hidden, expected_hidden) < allowed
        position += width
        last = expected_hidden[-1]
        drafted, projected = backend.draft(ids[position], last.numpy(), position)
        wanted, wanted_projected = eager.draft(token_ids[position], last, position)
        assert error(projected, wanted_projected) < allowed
        if lowered.recipe in FLOATING:  # integers may choose other clusters of tokens
            assert error(drafted, wanted) < allowed


@pytest.mark.parametrize("num_threads", [1, 4])
def test_verify_is_bit_equal_to_decoding_step_by_step(lowered, token_ids, num_threads):
    backend = open_onnx(lowered.folder / "model.fill.onnx", num_threads=num_threads)
    ids = token_ids.tolist()
    steps = [backend.verify(ids[i : i + 1], i)[0][0].copy() for i in range(CACHE_LENGTH)]
    for width in (2, 3, 4):
        for position in range(0, CACHE_LENGTH - width + 1, width):
            logits, _ = backend.verify(ids[position : position + width], position)
            np.testing.assert_array_equal(logits, steps[position : position + width])
    backend.prefill(ids[:-1], 0)
    np.testing.assert_array_equal(backend.verify(ids[-1:], CACHE_LENGTH - 1)[0][0], steps[-1])


def test_rejected_drafts_leave_no_trace(backend, token_ids):
    ids = token_ids.tolist()
    backend.prefill(ids[:8], 0)
    logits, hidden = (array.copy() for array in backend.verify(ids[8:9], 8))
    drafted = backend.draft(ids[9], hidden[0], 9)[0].copy()
    backend.verify(ids[12:16], 9)
    np.testing.assert_array_equal(backend.verify(ids[8:9], 8)[0], logits)
    np.testing.assert_array_equal(backend.draft(ids[9], hidden[0], 9)[0], drafted)


def test_the_checker_and_the_operators(lowered):
    for name, model in read_graphs(lowered.folder).items():
        onnx.checker.check_model(lowered.folder / f"model.{name}.onnx", full_check=True)
        assert {domain.domain for domain in model.opset_import} <= {"", "com.microsoft"}
        unexplained = {node.op_type for node in model.graph.node} - set(OPERATORS)
        assert not unexplained
        assert not model.functions


def test_names_are_module_paths_and_nothing_of_this_machine_is_kept(lowered):
    model = read_graphs(lowered.folder)["finish"]
    assert model.graph.name == "model.finish"
    names = [node.name for node in model.graph.node]
    kernel = "FusedMatMul" if lowered.recipe in FLOATING else "MatMulNBits"
    assert f"target/layers.1/mlp/gate_proj/{kernel}" in names
    assert len(set(names)) == len(names)
    assert "target.layers.1.mlp.gate_proj.weight" in stored_tensors(model)
    content = (lowered.folder / "model.finish.onnx").read_bytes()
    assert b".py" not in content


def test_sizes_that_are_free_have_names(lowered):
    graph = read_graphs(lowered.folder)["fill"].graph
    sizes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    assert sizes["token_ids"] == [1, "num_tokens"]
    assert sizes["past_key_values.0.key"][2] == "max_rows"


def test_no_weight_is_stored_twice_and_large_ones_begin_a_page(lowered):
    graphs = read_graphs(lowered.folder)
    places: dict[tuple[int, int], set[str]] = {}
    for model in graphs.values():
        for stored in stored_tensors(model).values():
            assert stored.location == "model.data"
            assert stored.offset % (4096 if stored.length >= 1 << 16 else 64) == 0
            leaf = stored.name.partition(".")[2].removesuffix(".stored")
            places.setdefault((stored.offset, stored.length), set()).add(leaf)
        inline = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        assert inline < 2048  # shapes and factors
    assert all(len(leaves) == 1 for leaves in places.values()), places
    ends = 0
    for offset, length in sorted(places):
        assert offset >= ends
        ends = offset + length
    assert (lowered.folder / "model.data").stat().st_size == ends


def test_the_tied_table_is_also_the_head(lowered):
    graphs = read_graphs(lowered.folder)
    table = stored_tensors(graphs["fill"])["embedder.embed_tokens.weight"]
    assert stored_tensors(graphs["draft"])["embedder.embed_tokens.weight"].offset == table.offset
    if lowered.target.spec.tied_head:
        head = stored_tensors(graphs["finish"])["target.embed_tokens.weight"]
        assert (head.offset, head.length) == (table.offset, table.length)


def test_integers_and_scales_are_those_of_the_recipe(lowered):
    for model in read_graphs(lowered.folder).values():
        tensors = stored_tensors(model)
        for name, stored in tensors.items():
            module, _, tensor_name = name.partition(".")
            prefix = "drafter." if module == "drafter" else ""
            kind = lowered.types(prefix).get(tensor_name)
            if kind is None or not kind.is_integer:
                continue
            checkpoint = lowered.drafter if prefix else lowered.target
            integers, scales = integers_and_scales(checkpoint, tensor_name, kind)
            # Two's complement, but for the highest bit.
            flipped = {8: 0x80, 4: 0x88, 2: 0xAA}[kind.bits]
            data = stored.read(lowered.folder).reshape(-1) ^ np.uint8(flipped)
            values = unpacked(data.tobytes(), kind.bits).reshape(len(integers), -1)
            np.testing.assert_array_equal(values[:, : integers.shape[1]], integers)
            path = name.removesuffix("weight")
            found = tensors.get(f"{path}scales.stored") or tensors[f"{path}scales"]
            np.testing.assert_array_equal(found.read(lowered.folder).reshape(scales.shape), scales)


def test_every_expert_is_a_part_of_its_stack(lowered):
    spec = lowered.target.spec.layers[0].experts
    if spec is None:
        pytest.skip("a dense model")
    tensors = stored_tensors(read_graphs(lowered.folder)["fill"])
    for name in ("layers.0.experts.gate_up_proj", "layers.0.experts.down_proj"):
        kind = lowered.types("")[name]
        parts = [tensors[f"target.{name}.{i}.weight"] for i in range(spec.num_experts)]
        found = np.concatenate([part.read(lowered.folder).reshape(-1) for part in parts])
        if not kind.is_integer:
            expected = dequantized(lowered.target, name, kind)
            np.testing.assert_array_equal(found, expected.reshape(-1))
            continue
        integers, scales = integers_and_scales(lowered.target, name, kind)
        values = np.stack((found & 15, found >> 4), -1) if kind.bits == 4 else found
        values = values.reshape(integers.shape).astype(np.int16) - 2 ** (kind.bits - 1)
        np.testing.assert_array_equal(values, integers)
        path = f"target.{name}.scales"
        stored = tensors.get(f"{path}.stored") or tensors[path]
        np.testing.assert_array_equal(stored.read(lowered.folder).reshape(scales.shape), scales)


def test_inspection_finds_what_the_recipe_planned(lowered):
    found = inspect(lowered.folder / "model.fill.onnx")
    bits = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "int2": 2}
    planned = {
        prefix + name: (tuple(checkpoint.shape(name)), kind.bits)
        for prefix, checkpoint in (("", lowered.target), ("drafter.", lowered.drafter))
        for name, kind in lowered.types(prefix).items()
        if len(checkpoint.shape(name)) > 1
    }
    assert {w.name: (w.shape, bits[w.dtype]) for w in found.weights} == planned
    assert len(found.weights) == len(planned)
    assert {buffer.num_rows for buffer in found.kv} == {CACHE_LENGTH}
    rows, number_bytes = ("float32", 4) if lowered.kv_ranges is None else ("int8", 1)
    assert found.kv_types == (rows,)
    sizes = [2 * layer.num_kv_heads * layer.head_dim for layer in lowered.target.spec.kv_layers]
    assert found.kv_bytes_per_token == number_bytes * sum(sizes)


def test_the_recipe_decides_the_operators(lowered):
    counts = [node.op_type for node in read_graphs(lowered.folder)["fill"].graph.node]
    assert ("MatMulNBits" in counts) == ("GatherBlockQuantized" in counts)
    assert ("MatMulNBits" in counts) == (lowered.recipe not in FLOATING)


def test_rows_are_written_once_per_layer_and_read_once_per_donor(lowered):
    graphs = read_graphs(lowered.folder)
    writes = {
        name: sum(node.op_type == "ScatterND" for node in model.graph.node)
        for name, model in graphs.items()
    }
    assert writes == {"fill": 2 * len(lowered.target.spec.kv_layers), "finish": 0, "draft": 0}
    for model in graphs.values():
        makers = {name: node.op_type for node in model.graph.node for name in node.output}
        found = {
            (makers[node.input[0]], node.op_type)
            for node in model.graph.node
            if node.op_type == "DequantizeLinear"
        }
        assert found == (set() if lowered.kv_ranges is None else {("Slice", "DequantizeLinear")})


def test_the_files_say_what_they_hold(lowered):
    for model in read_graphs(lowered.folder).values():
        assert {entry.key: entry.value for entry in model.metadata_props} == {
            "format_version": "1",
            "context_length": str(CACHE_LENGTH),
            "vocab_size": str(PLE.vocab_size),
            "hidden_size": str(lowered.target.spec.hidden_size),
            "max_prefill_length": str(PREFILL_LENGTH),
            "max_verify_length": "4",
            "has_drafter": "1",
            "sliding": "5 0",  # the window, and the layer that slides
        }
