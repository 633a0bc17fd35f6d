"""The files say what the graph says, under the names and layouts of the official runtime."""

import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
import torch

from exporter.checkpoint.config import parse_target
from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.config import GraphShapes
from exporter.graph.target import Target
from exporter.lower.litert.kv_cache import kv_shapes
from exporter.lower.litert.lower import lower
from exporter.lower.litert.modules import target_signatures
from exporter.quantize import load_recipe
from tests.exporter.graph.eager import EagerModel, causal_mask
from tests.exporter.lower.litert.files import read, run
from tests.exporter.tiny_models import Shape, save_pair
from tests.make_checkpoint import SIZES, target_config

CACHE_LENGTH = 16
PREFILL_LENGTH = 5
TOLERANCE = 1e-4  # of the largest value

WITH_PLE = Shape(
    layers="sfsf", kv_heads=1, shared=2, doubled=True, per_layer=8, centroids=16, top_k=3,
    drafter_layers="sf",
)  # fmt: skip
DENSE = Shape(layers="sf", global_kv_heads=1, tied=False, drafter_layers="sf")


@dataclass(frozen=True)
class Lowered:
    """One exported pair and the same pair run eagerly."""

    folder: Path
    eager: EagerModel
    files: list[Path]
    progress: list[tuple[int, int]]

    def call(self, stem: str, signature: str, **inputs):
        return run(self.folder / f"{stem}.tflite", signature, **inputs)


# Half a minute each; the tiny model, whose files tests/end_to_end runs, is of the first kind.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(WITH_PLE, id="ple", marks=pytest.mark.slow),
        pytest.param(DENSE, id="dense"),
    ],
)
def lowered(request, tmp_path_factory) -> Lowered:
    folder = tmp_path_factory.mktemp("lowered")
    target_folder, drafter_folder = save_pair(request.param, 1, folder)
    target = read_checkpoint(target_folder)
    shapes = GraphShapes(
        prefill_lengths=(PREFILL_LENGTH,), verify_widths=(4,), cache_length=CACHE_LENGTH
    )
    progress: list[tuple[int, int]] = []
    files = lower(
        target,
        read_drafter(drafter_folder, target),
        shapes,
        load_recipe("float32"),
        folder,
        lambda *call: progress.append(call),
    )
    eager = EagerModel(target_folder, drafter_folder, CACHE_LENGTH)
    return Lowered(folder, eager, files, progress)


def by_layout(kv: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]):
    """The plain cache's tensors in the layout of the file."""
    return {
        name: kv[name] if tuple(kv[name].shape) == shape else kv[name].transpose(2, 3)
        for name, shape in shapes.items()
    }


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def test_the_files_are_the_sections_of_the_bundle(lowered):
    ple = ["per_layer_embedder"] if lowered.eager.spec.per_layer_size else []
    stems = ["embedder", *ple, "prefill_decode", "mtp_drafter"]
    assert lowered.files == [lowered.folder / f"{stem}.tflite" for stem in stems]
    assert not list(lowered.folder.glob("tmp*"))


def test_names_shapes_and_types_are_the_official_contract(lowered):
    spec = lowered.eager.spec
    kv = {name: (shape, "FLOAT32") for name, shape in kv_shapes(spec.layers, CACHE_LENGTH).items()}
    signatures = read(lowered.folder / "prefill_decode.tflite").signatures()

    assert list(signatures) == [f"prefill_{PREFILL_LENGTH}", "decode", "verify"]
    for name, num_tokens in (("decode", 1), ("verify", 4), (f"prefill_{PREFILL_LENGTH}", 5)):
        inputs, outputs = signatures[name]
        expected = {
            "embeddings": ((1, num_tokens, spec.hidden_size), "FLOAT32"),
            "input_pos": ((num_tokens,), "INT32"),
            "mask": ((1, 1, num_tokens, CACHE_LENGTH), "FLOAT32"),
        }
        if spec.per_layer_size:
            per_layer = (1, num_tokens, len(spec.layers), spec.per_layer_size)
            expected["per_layer_embeddings"] = (per_layer, "FLOAT32")
        assert inputs == expected | kv
        made = {
            "logits": ((1, num_tokens, spec.vocab_size), "FLOAT32"),
            "activations": ((1, num_tokens, spec.hidden_size), "FLOAT32"),
        }
        assert outputs == (kv if name.startswith("prefill") else made | kv)


def test_the_drafter_reads_the_donors_rows_under_the_targets_names(lowered):
    spec = lowered.eager.spec
    donors = [spec.layers[index] for index in spec.donors.values()]
    (inputs, outputs) = read(lowered.folder / "mtp_drafter.tflite").signatures()["mtp_drafter"]
    assert inputs == {
        "activations": ((1, 1, 2 * spec.hidden_size), "FLOAT32"),
        "input_pos": ((1,), "INT32"),
        "mask": ((1, 1, 1, CACHE_LENGTH), "FLOAT32"),
    } | {name: (shape, "FLOAT32") for name, shape in kv_shapes(donors, CACHE_LENGTH).items()}
    assert outputs == {
        "logits": ((1, 1, spec.vocab_size), "FLOAT32"),
        "projected_activations": ((1, 1, spec.hidden_size), "FLOAT32"),
    }


def test_kv_rows_are_written_in_place(lowered):
    assert "DYNAMIC_UPDATE_SLICE" in read(lowered.folder / "prefill_decode.tflite").operators()


def test_every_signature_reads_the_same_bytes(lowered):
    file = read(lowered.folder / "prefill_decode.tflite")
    prefill, decode, verify = ({w.name: w.offset for w in uses} for uses in file.weights())
    assert decode == verify
    assert prefill.items() <= decode.items()
    assert len(set(decode.values())) == len(decode)
    assert all(offset % 64 == 0 and offset > 0 for offset in decode.values())
    expected = {
        name
        for name in lowered.eager.checkpoint.names()
        if len(lowered.eager.checkpoint.shape(name)) == 2
    } - {"embed_tokens_per_layer.weight"}
    if not lowered.eager.spec.tied_head:
        expected -= {"embed_tokens.weight"}
    assert set(decode) == expected


def test_float32_bytes_are_the_checkpoints(lowered):
    for path in lowered.files:
        checkpoint = lowered.eager.checkpoint
        if path.stem == "mtp_drafter":
            checkpoint = lowered.eager.drafter_checkpoint
        for weight in read(path).weights()[0]:
            assert weight.type == "FLOAT32"
            assert weight.data == checkpoint.tensor(weight.name).numpy().tobytes()


def test_progress_runs_over_all_files_to_the_bytes_of_their_weights(lowered):
    done, totals = zip(*lowered.progress, strict=True)
    assert list(done) == sorted(done)
    stored = [{w.offset: len(w.data) for w in chain(*read(p).weights())} for p in lowered.files]
    assert set(totals) == {done[-1]} == {sum(sum(sizes.values()) for sizes in stored)}


@torch.no_grad()
def test_prefill_decode_verify_and_draft_equal_the_eager_graph(lowered):
    """One conversation, call by call: each artefact is fed what the artefacts before it made."""
    eager = lowered.eager
    eager.clear()
    token_ids = torch.randint(0, eager.spec.vocab_size, (10,), generator=torch.manual_seed(3))
    shapes = kv_shapes(eager.spec.layers, CACHE_LENGTH)
    kv = {name: torch.zeros(shape) for name, shape in shapes.items()}

    def rows_are_the_same() -> bool:
        expected = by_layout(eager.kv.tensors, shapes)
        return all(same(kv[name], expected[name]) for name in kv)

    def step(signature: str, ids: torch.Tensor, position: int):
        calls = [lowered.call("embedder", "embedder", token_ids=i.reshape(1, 1).int()) for i in ids]
        inputs = {"embeddings": torch.cat([call["embeddings"] for call in calls], dim=1)}
        if eager.spec.per_layer_size:
            stem = "per_layer_embedder"
            calls = [lowered.call(stem, stem, token_ids=i.reshape(1, 1).int()) for i in ids]
            inputs["per_layer_embeddings"] = torch.cat([c["embeddings"] for c in calls], dim=1)
        input_pos = torch.arange(position, position + len(ids), dtype=torch.int32)
        inputs |= {"input_pos": input_pos, "mask": causal_mask(input_pos, CACHE_LENGTH, -2.4e38)}
        outputs = lowered.call("prefill_decode", signature, **inputs, **kv)
        kv.update({name: outputs[name] for name in kv})
        return inputs["embeddings"], outputs

    step(f"prefill_{PREFILL_LENGTH}", token_ids[:5], 0)
    eager.prefill(token_ids[:5], 0)
    assert rows_are_the_same()

    for signature, start, stop in (("decode", 5, 6), ("verify", 6, 10)):
        embeddings, outputs = step(signature, token_ids[start:stop], start)
        logits, activations = eager.verify(token_ids[start:stop], start)
        assert same(outputs["logits"][0], logits)
        assert same(outputs["activations"][0], activations)
        assert rows_are_the_same()

    input_pos = torch.tensor([9], dtype=torch.int32)
    drafted = lowered.call(
        "mtp_drafter",
        "mtp_drafter",
        activations=torch.cat((embeddings[:, -1:], outputs["activations"][:, -2:-1]), dim=-1),
        input_pos=input_pos,
        mask=causal_mask(input_pos, CACHE_LENGTH, -2.4e38),
        **{
            name: kv[name]
            for name in kv
            if int(name.rsplit("_", 1)[1]) in eager.spec.donors.values()
        },
    )
    logits, projected = eager.draft(token_ids[9], activations[-2], 9)
    assert same(drafted["logits"][0, 0], logits)
    assert same(drafted["projected_activations"][0, 0], projected)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts pages as Linux does")
def test_what_graphs_are_traced_with_takes_no_memory():
    """The KV rows of E2B, once per signature, would be most of a gigabyte."""

    def resident_mb() -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^RssAnon:\s*(\d+) kB", status, re.M)[1]) // 1000

    spec = parse_target(target_config(SIZES["e2b"]), "e2b")
    module = Target(spec)
    before = resident_mb()
    signatures = target_signatures(module, GraphShapes(cache_length=4096))
    samples = [tensor for signature in signatures for tensor in leaves(signature.sample)]
    assert sum(tensor.nbytes for tensor in samples) > 5e8
    assert resident_mb() < before + 50


def leaves(sample):
    for value in sample.values():
        yield from leaves(value) if isinstance(value, dict) else [value]
