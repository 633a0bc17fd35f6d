"""The random checkpoints of the benchmarks are checkpoints like any other."""

import json
import math
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

from exporter.checkpoint.config import parse_target
from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.graph.weights import expected_tensors
from exporter.original.model import Original
from exporter.quantize import WeightType, quantize_rows
from tests import make_checkpoint
from tests.make_checkpoint import SIZES, DrafterSize, Size, make_pair, target_config

SMALL = Size(
    num_layers=6,
    num_shared=3,
    vocab_size=4224,
    hidden_size=64,
    intermediate_size=96,
    head_dim=8,
    per_layer_size=8,
    drafter=DrafterSize(hidden_size=32, intermediate_size=48),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"), SMALL, seed=3)


def test_the_exporter_reads_them(pair):
    target = read_checkpoint(pair[0])
    drafter = read_drafter(pair[1], target)
    assert target.spec.donors == {"sliding_attention": 1, "full_attention": 2}
    assert [layer.intermediate_size for layer in target.spec.layers] == [96] * 3 + [192] * 3
    assert drafter.spec.centroids.num_centroids == 33
    weights = target.tensor("layers.0.mlp.down_proj.weight")
    assert 0.9 < weights.norm(dim=1).mean() < 1.1


def test_transformers_runs_them_and_nothing_overflows(pair):
    target = read_checkpoint(pair[0])
    texts = Original(target, read_drafter(pair[1], target)).begin([[2, 5, 9, 4100]])
    assert texts.logits.isfinite().all()
    assert 0.1 < texts.logits.std() < 10
    assert texts.draft(texts.logits.argmax(dim=-1), 2).shape == (1, 2)


def test_transformers_misses_no_tensor(pair):
    from transformers import Gemma4ForCausalLM

    _, report = Gemma4ForCausalLM.from_pretrained(pair[0], output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_shards_and_pieces_of_tensors_change_nothing(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(make_checkpoint, "SHARD_BYTES", 100_000)
    sharded, _ = make_pair(tmp_path, SMALL, seed=3)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    whole, parts = read_checkpoint(pair[0]), read_checkpoint(sharded)
    assert all(torch.equal(whole.tensor(n), parts.tensor(n)) for n in whole.names())


def test_int4_changes_no_weight(pair):
    target = read_checkpoint(pair[0])
    for name in ("layers.0.mlp.down_proj.weight", "embed_tokens.weight"):
        weights = target.tensor(name)
        scales, _ = quantize_rows(weights, WeightType(4))
        integers = weights / torch.from_numpy(scales)[:, None]
        assert torch.equal(integers, integers.round())
        assert len(integers.unique()) == 15


def test_every_id_has_a_piece(pair):
    tokenizer = Tokenizer.from_file(str(pair[0] / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SMALL.vocab_size
    assert tokenizer.decode(tokenizer.encode("return the list").ids) == "return the list"


def test_the_full_shape_is_e2b():
    size = SIZES["e2b"]
    own, shared = size.kinds[:15], size.kinds[15:]
    assert len(shared) == size.num_shared == 20
    assert own[4::5] == ["full_attention"] * 3
    assert shared[4::5] == ["full_attention"] * 4
    assert size.kinds.count("full_attention") == 7


@pytest.mark.parametrize(
    ("name", "billions"),
    [("e2b", 4.63), ("e4b", 7.5), ("12b", 11.9), ("26b-a4b", 25.2), ("31b", 30.7)],
)
def test_the_full_sizes_have_as_many_weights_as_their_names_say(name, billions):
    spec = parse_target(target_config(SIZES[name]), name)
    modules = [Embedder(spec), Target(spec)]
    modules += [PerLayerEmbedder(spec)] if spec.per_layer_size else []
    count = sum(math.prod(shape) for shape in expected_tensors(modules).values())
    assert count / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", SIZES)
def test_transformers_knows_every_size(name, tmp_path):
    """Few layers, few tokens and narrow: what is left are the switches."""
    size = replace(
        SIZES[name].reduced(6, 4224),
        hidden_size=64,
        intermediate_size=96,
        head_dim=8,
        drafter=replace(SIZES[name].drafter, hidden_size=32, intermediate_size=48),
    )
    folders = make_pair(tmp_path, size, seed=0)
    target = read_checkpoint(folders[0])
    original = Original(target, read_drafter(folders[1], target))
    found = original.target.config
    assert [layer.kind for layer in target.spec.layers] == found.layer_types
    texts = original.begin([[2, 5, 9]])
    assert texts.draft(texts.logits.argmax(dim=-1), 2).shape == (1, 2)


@pytest.mark.parametrize("options", [("--layers", "3"), ("--vocab", "5000"), ("--vocab", "128")])
def test_impossible_sizes_are_refused(tmp_path, options):
    out = tmp_path / "out"
    done = CliRunner().invoke(make_checkpoint.main, ["--size", "e2b-stack", *options, str(out)])
    assert done.exit_code == 2
    assert options[0] in done.output
