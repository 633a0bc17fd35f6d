"""Reading targets and drafters: what is accepted, and which pairs are not."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from tests.exporter import tiny_models
from tests.exporter.damage import WEIGHTS, edit_config, edit_tensors, error_of
from tests.exporter.tiny_models import A4B_26B, DENSE_31B, E2B, UNIFIED_12B, UNTIED


@pytest.mark.parametrize(
    "shape", [E2B, UNIFIED_12B, A4B_26B, UNTIED], ids=["e2b", "unified", "a4b", "untied"]
)
@pytest.mark.parametrize("multimodal", [False, True])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_every_kind_of_checkpoint_reads_the_same(shape, multimodal, shard_size, tmp_path):
    model = tiny_models.target_model(shape, 5, multimodal)
    tiny_models.save(model, tmp_path, shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shard_size == "1GB"
    checkpoint = read_checkpoint(tmp_path)
    decoder = model.model.language_model if multimodal else model.model
    expected = dict(decoder.state_dict())
    if not shape.tied:
        expected["lm_head.weight"] = model.lm_head.weight.detach()
    assert set(checkpoint.names()) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_the_spec_of_the_e2b_kind(originals):
    spec = read_checkpoint(originals[0]).spec
    assert spec.donors == {"sliding_attention": 1, "full_attention": 2}
    assert [layer.kv_source for layer in spec.layers] == [0, 1, 2, 1, 1, 2]
    assert [layer.intermediate_size for layer in spec.layers] == [48] * 3 + [96] * 3
    assert [layer.head_dim for layer in spec.layers] == [8, 8, 16] * 2
    assert spec.ropes["full_attention"].num_turning == 2
    assert (spec.per_layer_size, spec.logit_softcap, spec.tied_head) == (8, 30.0, True)


def test_the_published_spelling_of_head_sizes(target):
    """Published files have global_head_dim; transformers writes per_layer_config."""
    spec = read_checkpoint(target).spec
    config = json.loads((target / "config.json").read_text())
    del config["per_layer_config"]
    (target / "config.json").write_text(json.dumps(config | {"global_head_dim": 16}))
    assert read_checkpoint(target).spec == spec


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32(target, dtype):
    edit_tensors(
        target, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()})
    )
    stored = load_file(target / WEIGHTS)["model.embed_tokens.weight"]
    checkpoint = read_checkpoint(target)
    rows = checkpoint.rows("embed_tokens.weight", 3, 9)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, stored[3:9].float())
    assert checkpoint.rows("embed_tokens.weight", 4, 4).shape == (0, 32)
    with pytest.raises(ValueError, match="rows"):
        checkpoint.rows("embed_tokens.weight", 0, 65)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_that_is_none_is_found_when_its_row_is_read(target, value, dtype):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].to(dtype)
        tensors["model.embed_tokens.weight"][5, 3] = value

    edit_tensors(target, spoil)
    checkpoint = read_checkpoint(target)
    assert checkpoint.rows("embed_tokens.weight", 0, 5).isfinite().all()
    message = error_of(checkpoint.rows, "embed_tokens.weight", 4, 8)
    assert "embed_tokens.weight holds NaN or infinity in rows 4 to 7" in message
    assert message == error_of(checkpoint.check_finite).replace("0 to 63", "4 to 7")


def test_huge_numbers_are_finite_though_their_sum_is_not(target):
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = torch.full((64, 32), 3e38)

    edit_tensors(target, enlarge)
    assert read_checkpoint(target).tensor("embed_tokens.weight").min() > 2e38


def test_good_numbers_are_all_finite(target, drafter):
    checkpoint = read_checkpoint(target)
    checkpoint.check_finite()
    read_drafter(drafter, checkpoint).check_finite()  # whose ordering is of integers


def test_tensors_that_are_not_aligned_in_the_file(target):
    before = read_checkpoint(target).tensor("norm.weight").clone()
    path = target / WEIGHTS
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes(
        (size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :]
    )
    assert torch.equal(read_checkpoint(target).tensor("norm.weight"), before)


def test_the_file_is_never_written(target):
    before = (target / WEIGHTS).read_bytes()
    read_checkpoint(target).tensor("norm.weight").zero_()
    assert (target / WEIGHTS).read_bytes() == before


def test_leftovers_that_transformers_ignores_too(target):
    def leave(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("k_proj", "v_proj", "k_norm", "v_norm"):
            tensors[f"model.layers.4.self_attn.{part}.weight"] = torch.zeros(8, 32)
        tensors["model.vision_tower.patch.weight"] = torch.zeros(2)
        tensors["model.embed_audio.projection.weight"] = torch.zeros(2)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    names = read_checkpoint(target).names()
    edit_tensors(target, leave)
    assert read_checkpoint(target).names() == names


def test_a_tied_head_under_its_other_name(target):
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    before = read_checkpoint(target).tensor("embed_tokens.weight").clone()
    edit_tensors(target, rename)
    assert torch.equal(read_checkpoint(target).tensor("embed_tokens.weight"), before)


def test_the_12bs_drafter_has_a_dense_head(tmp_path):
    """Its config.json carries num_centroids, and use_ordered_embeddings false."""
    shape = dataclasses.replace(UNIFIED_12B, centroids=0)
    target, drafter = tiny_models.save_pair(shape, 1, tmp_path)
    edit_config(drafter, num_centroids=2048, centroid_intermediate_top_k=32)
    assert read_drafter(drafter, read_checkpoint(target)).spec.centroids is None


def test_a_drafter_reads_its_donors(originals):
    spec = read_drafter(originals[1], read_checkpoint(originals[0])).spec
    assert spec.donors == {"sliding_attention": 1, "full_attention": 2}
    assert not any(layer.owns_kv for layer in spec.layers)  # although layer 1 reads layer 1
    assert spec.centroids is not None


# What is refused: drafters


def drafter_error(target: Path, drafter: Path) -> str:
    return error_of(read_drafter, drafter, read_checkpoint(target))


def test_a_target_given_as_drafter(target):
    message = drafter_error(target, target)
    assert "is a target, needed a drafter" in message


def test_a_drafter_given_as_target(drafter):
    assert "is a drafter, needed a target" in error_of(read_checkpoint, drafter)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 40}, "backbone_hidden_size is 32 and the target's is 40"),
        ({"vocab_size": 96}, "vocab_size is 64 and the target's is 96"),
        ({"global_head_dim": 32}, "head_dim is 16 and the target's is 32"),
        ({"kv_heads": 2}, "num_key_value_heads is 1 and the target's is 2"),
        ({"layers": "ff", "shared": 0}, "the target has no such layer"),
    ],
    ids=lambda value: str(value),
)
def test_a_drafter_of_another_target(tmp_path, drafter, change, said):
    other = tiny_models.target_model(dataclasses.replace(E2B, **change), 1)
    message = drafter_error(tiny_models.save(other, tmp_path / "other"), drafter)
    assert said in message
    assert "use the drafter made for this target" in message


def test_a_drafter_knows_no_added_tokens(target, drafter):
    """A fine-tune with tokens of its own, and the stock drafter."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"):
            rows = tensors[name]
            tensors[name] = torch.cat((rows, rows[:2]))

    edit_tensors(target, add)
    edit_config(target, vocab_size=66, vocab_size_per_layer_input=66)
    message = drafter_error(target, drafter)
    assert "vocab_size is 64 and the target's is 66" in message
    assert "if tokens were added" in message
    assert "--no-drafter" in message


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (None, "backbone_hidden_size", "32"),
        (None, "use_ordered_embeddings", "yes"),
        (None, "num_centroids", 5),
        (None, "num_centroids", None),
        (None, "centroid_intermediate_top_k", 17),
        (None, "text_config", None),
        (None, "quantization_config", {}),
        ("text_config", "num_kv_shared_layers", 2),
        ("text_config", "hidden_size_per_layer_input", 8),
        ("text_config", "model_type", "llama"),
        ("text_config", "enable_moe_block", True),
    ],
)
def test_a_drafter_that_makes_no_sense(target, drafter, part, key, value):
    edit_config(drafter, part, **{key: value})
    assert key in drafter_error(target, drafter)


@pytest.mark.parametrize(
    "ordering",
    [torch.zeros(64).long(), torch.arange(1, 65), torch.arange(64) - 2**32, torch.arange(64) % 63],
    ids=["zeros", "beyond", "wraps", "twice"],
)
def test_an_ordering_that_is_none(target, drafter, ordering):
    edit_tensors(
        drafter, lambda tensors: tensors.update({"masked_embedding.token_ordering": ordering})
    )
    assert "token_ordering does not name each" in drafter_error(target, drafter)


def test_an_ordering_of_floats(target, drafter):
    name = "masked_embedding.token_ordering"
    edit_tensors(drafter, lambda tensors: tensors.update({name: torch.zeros(64)}))
    assert f"{name} is F32" in drafter_error(target, drafter)


def test_centroids_left_aside(target, drafter):
    """Off in config.json, they are not used, as in transformers."""
    edit_config(drafter, use_ordered_embeddings=False)
    checkpoint = read_drafter(drafter, read_checkpoint(target))
    assert not [name for name in checkpoint.names() if name.startswith("masked_embedding")]


def test_the_31b_kind_keeps_its_global_heads(tmp_path):
    target, _ = tiny_models.save_pair(DENSE_31B, 1, tmp_path)
    full = read_checkpoint(target).spec.layers[2]
    assert (full.num_kv_heads, full.values_from_keys) == (2, True)


@pytest.fixture
def with_experts(tmp_path):
    return tiny_models.save(tiny_models.target_model(A4B_26B, 1), tmp_path / "a4b")


def test_the_rows_of_a_stack_are_those_of_its_matrices(with_experts):
    checkpoint = read_checkpoint(with_experts)
    name = "layers.1.experts.down_proj"
    stack = checkpoint.tensor(name)
    assert stack.shape == checkpoint.shape(name) == (8, 32, 12)
    assert torch.equal(checkpoint.rows(name, 40, 130), stack.reshape(-1, 12)[40:130])
    with pytest.raises(ValueError, match="rows"):
        checkpoint.rows(name, 0, 8 * 32 + 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts", 7),
        ("num_experts", 2**12 + 1),
        ("num_experts", None),
        ("top_k_experts", 9),
        ("top_k_experts", 0),
        ("moe_intermediate_size", 13),
        ("moe_intermediate_size", "12"),
    ],
)
def test_experts_that_make_no_sense(with_experts, key, value):
    edit_config(with_experts, **{key: value})
    message = error_of(read_checkpoint, with_experts)
    assert key in message or "has shape" in message


def test_experts_that_the_configuration_does_not_mention(with_experts):
    edit_config(with_experts, enable_moe_block=False)
    assert "unknown tensor layers.0." in error_of(read_checkpoint, with_experts)


def test_a_unified_model_has_no_experts(tmp_path):
    """transformers would read the configuration and build none."""
    folder = tiny_models.save(tiny_models.target_model(UNIFIED_12B, 1), tmp_path)
    edit_config(folder, enable_moe_block=True)
    assert "a unified model has no experts" in error_of(read_checkpoint, folder)
