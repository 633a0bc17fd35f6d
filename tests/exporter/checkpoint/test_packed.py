"""Checkpoints of integers (compressed-tensors): read as that library does, kept, or refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.compressors import unpack_from_int32

from exporter.checkpoint.reader import read_checkpoint
from exporter.errors import ExportError
from exporter.original.model import Original
from exporter.quantize import WeightType, load_recipe, plan, quantize
from tests.exporter import tiny_models
from tests.exporter.checkpoint import adapters
from tests.exporter.checkpoint.packed_checkpoints import SHAPE, save_packed, stored
from tests.exporter.damage import edit_config, edit_tensors, error_of

Q_PROJ = "layers.0.self_attn.q_proj"


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    return save_packed(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def folder(packed, tmp_path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "packed"))


@pytest.mark.parametrize(
    ("options", "scale_type", "kind"),
    [
        ({}, torch.bfloat16, (4, 32)),
        ({"group_size": 16}, torch.float16, (4, 16)),
        ({"strategy": "channel", "group_size": None}, torch.float32, (4, 0)),
        ({"strategy": "channel", "group_size": None, "num_bits": 8}, torch.bfloat16, (8, 0)),
        ({"num_bits": 2}, torch.bfloat16, (2, 32)),
    ],
)
def test_integers_are_those_the_library_unpacks(options, scale_type, kind, tmp_path):
    save_packed(tmp_path, scale_type=scale_type, **options)
    tensors, checkpoint = stored(tmp_path), read_checkpoint(tmp_path)
    names = [name.removesuffix("_packed") for name in tensors if name.endswith("weight_packed")]
    assert len(names) == 48
    for name in names:
        shape = torch.Size(tensors[f"{name}_shape"].tolist())
        integers = unpack_from_int32(tensors[f"{name}_packed"], kind[0], shape)
        scales = tensors[f"{name}_scale"].float()
        found = checkpoint.packed(name)
        assert (found.kind.bits, found.kind.group_size) == kind
        assert checkpoint.shape(name) == shape
        assert torch.equal(found.integers(0, shape[0]), integers)
        assert torch.equal(found.integers(3, 5), integers[3:5])
        assert torch.equal(found.scales(0, shape[0]).reshape(scales.shape), scales)
        exact = integers * scales.repeat_interleave(shape[1] // scales.shape[1], dim=1)
        assert torch.equal(checkpoint.tensor(name), exact)
        assert torch.equal(checkpoint.rows(name, 3, 5), exact[3:5])
    assert checkpoint.packed("per_layer_model_projection.weight") is None
    assert checkpoint.packed("embed_tokens.weight") is None


@pytest.mark.parametrize("num_columns", [2, 6, 30])
def test_rows_that_end_inside_a_word(num_columns, tmp_path):
    shape = dataclasses.replace(SHAPE, hidden_size=num_columns, centroids=0)
    save_packed(tmp_path, shape, strategy="channel", group_size=None)
    found = read_checkpoint(tmp_path).packed(f"{Q_PROJ}.weight")
    words = stored(tmp_path)[f"{Q_PROJ}.weight_packed"]
    expected = unpack_from_int32(words, 4, torch.Size((64, num_columns)))
    assert torch.equal(found.integers(0, 64), expected)


@pytest.mark.parametrize("recipe", ["int8", "int4", "int4-groups"])
def test_what_is_quantized_is_what_was_stored(recipe, packed):
    checkpoint = read_checkpoint(packed)
    types = plan(checkpoint, load_recipe(recipe))
    assert types[f"{Q_PROJ}.weight"] == WeightType(4, 32)
    assert types["embed_tokens.weight"] == load_recipe(recipe).rule("embed_tokens").weight_type
    for name, kind in types.items():
        kept = checkpoint.packed(name)
        if kept is None:
            continue
        chunks = list(quantize(checkpoint, name, kind))
        data = np.frombuffer(b"".join(chunk.data for chunk in chunks), np.uint8)
        values = np.stack((data & 15, data >> 4), -1).reshape(checkpoint.shape(name))
        integers = kept.integers(0, len(values)).numpy()
        np.testing.assert_array_equal((values ^ 8).astype(np.int8) - 8, integers)
        scales = np.concatenate([chunk.scales for chunk in chunks])
        np.testing.assert_array_equal(scales, stored(packed)[f"{name}_scale"].float())


def test_float32_is_what_the_integers_stand_for(packed):
    checkpoint = read_checkpoint(packed)
    types = plan(checkpoint, load_recipe("float32"))
    name = f"{Q_PROJ}.weight"
    assert types[name].bits == 32
    data = b"".join(chunk.data for chunk in quantize(checkpoint, name, types[name]))
    assert data == checkpoint.tensor(name).numpy().tobytes()


def test_requantized_the_recipe_decides(packed):
    checkpoint = read_checkpoint(packed, keep_integers=False)
    assert checkpoint.packed(f"{Q_PROJ}.weight") is None
    assert set(plan(checkpoint, load_recipe("int8")).values()) == {WeightType(32), WeightType(8)}


def test_the_original_says_what_transformers_says_of_it(packed):
    """It rounds each product to the type of the scales, bfloat16; the original here does not."""
    token_ids = [3, 60, 7, 7, 12]
    with torch.inference_mode():
        found = Original(read_checkpoint(packed), None).read(token_ids)
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        model = transformers.AutoModelForCausalLM.from_pretrained(packed, **options)
        expected = model(input_ids=torch.tensor([token_ids])).logits[0]
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert float((found - expected).abs().mean()) < 0.01 * float(expected.abs().max())


def test_a_checkpoint_in_its_multimodal_wrapper(packed, tmp_path):
    """Whose quantization_config may be in text_config, and whose towers are integers too."""
    folder = Path(shutil.copytree(packed, tmp_path / "whole"))
    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    text = {**config, "quantization_config": quantization}
    wrapper = {"model_type": "gemma4", "text_config": text, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(wrapper))

    def wrap(tensors):
        for name in list(tensors):
            tensors[name.replace("model.", "model.language_model.", 1)] = tensors.pop(name)
        tensors["model.vision_tower.x.weight_packed"] = torch.zeros(2, 3, dtype=torch.int32)

    edit_tensors(folder, wrap)
    plain, found = read_checkpoint(packed), read_checkpoint(folder)
    for name in plain.names():
        assert torch.equal(found.tensor(name), plain.tensor(name))
        assert (found.packed(name) is None) == (plain.packed(name) is None)


def quantization(**changes: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
        **changes,
    }


def scheme(**changes: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "group_size": 32, **changes}
    return quantization(config_groups={"g": {"weights": weights}})


REFUSED = [
    ({"quant_method": "awq", "bits": 4}, "'awq'"),
    ({"quant_method": "gptq"}, "'gptq'"),
    ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "'bitsandbytes'"),
    ({}, "quant_method"),
    ([1], "needed an object"),
    (quantization(format="int-quantized"), "'int-quantized'"),
    (quantization(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    (quantization(transform_config={"config_groups": {"a": 1}}), "transform_config"),
    (quantization(sparsity_config={"format": "sparse-24"}), "sparsity_config"),
    (quantization(config_groups={}), "no config_groups"),
    (quantization(config_groups={"W4A16": ["Linear"]}), "no weights"),
    (quantization(config_groups={"g": {"weights": None}}), "no weights"),
    (
        quantization(config_groups={"g": {"weights": {}, "input_activations": {"num_bits": 8}}}),
        "input_activations",
    ),
    (scheme(num_bits=3), "num_bits is 3"),
    (scheme(num_bits=True), "num_bits is True"),
    (scheme(type="float"), "type is 'float'"),
    (scheme(symmetric=False), "symmetric is False"),
    (scheme(strategy="block"), "strategy is 'block'"),
    (scheme(actorder="group"), "actorder is 'group'"),
    (scheme(group_size="x", strategy="group"), "group_size is 'x'"),
    (scheme(group_size=0), "group_size is 0"),
    (scheme(dynamic=True), "dynamic is True"),
    (scheme(num_bits=8), "not what config.json says"),
    (scheme(group_size=64), "not what config.json says"),
]


@pytest.mark.parametrize(("config", "complaint"), REFUSED, ids=[text for _, text in REFUSED])
def test_other_ways_to_store_integers_are_refused_by_name(config, complaint, folder):
    edit_config(folder, quantization_config=config)
    assert complaint in error_of(read_checkpoint, folder)


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_a_checkpoint_of_mlx(key, folder):
    edit_config(folder, **{key: {"group_size": 64, "bits": 4}})
    assert "quantized by MLX (4 bits in groups of 64)" in error_of(read_checkpoint, folder)


def test_a_checkpoint_of_mlx_whose_config_does_not_say_so(target):
    name = "model.layers.0.self_attn.q_proj"
    edit_tensors(target, lambda tensors: tensors.update({f"{name}.scales": torch.ones(4, 1)}))
    message = error_of(read_checkpoint, target)
    assert "layers.0.self_attn.q_proj.scales: quantized by MLX" in message


@pytest.mark.parametrize(
    ("part", "tensor", "complaint"),
    [
        ("weight_scale", None, "needed weight_packed"),
        ("weight_shape", None, "needed weight_packed"),
        ("weight_packed", None, f"no tensor {Q_PROJ}.weight"),
        ("weight_shape", torch.tensor([64, 66]), "not what config.json says"),
        ("weight_shape", torch.tensor([64, -64]), "not what config.json says"),
        ("weight_shape", torch.tensor([64]), "two integers"),
        ("weight_shape", torch.tensor([64.0, 64.0]), "two integers"),
        ("weight_scale", torch.ones(64, 3), "not what config.json says"),
        ("weight_scale", torch.ones(128), "needed matrices"),
        ("weight_packed", torch.zeros(64, 8), "needed matrices"),
        ("weight_packed", torch.zeros(32, 8, dtype=torch.int32), "not what config.json says"),
    ],
)
def test_parts_that_do_not_fit(part, tensor, complaint, folder):
    def change(tensors):
        del tensors[f"model.{Q_PROJ}.{part}"]
        if tensor is not None:
            tensors[f"model.{Q_PROJ}.{part}"] = tensor

    edit_tensors(folder, change)
    assert complaint in error_of(read_checkpoint, folder)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number(scale, folder):
    edit_tensors(folder, lambda tensors: tensors[f"model.{Q_PROJ}.weight_scale"].fill_(scale))
    checkpoint = read_checkpoint(folder)
    with pytest.raises(ExportError, match="not a positive number"):
        list(quantize(checkpoint, f"{Q_PROJ}.weight", WeightType(4, 32)))


def test_groups_that_no_runtime_has_need_a_word(tmp_path):
    save_packed(tmp_path, group_size=16)
    said = error_of(plan, read_checkpoint(tmp_path), load_recipe("int4-groups"))
    assert "--requantize" in said
    plan(read_checkpoint(tmp_path, keep_integers=False), load_recipe("int4-groups"))


def test_an_adapter_changes_no_stored_integers(packed, tmp_path):
    base = tiny_models.save(tiny_models.target_model(SHAPE, 3), tmp_path / "base")
    adapter = adapters.make_adapter(base, tmp_path / "lora", target_modules=["q_proj"])
    assert "--requantize" in error_of(read_checkpoint, packed, adapter)
    checkpoint = read_checkpoint(packed, adapter, keep_integers=False)
    before = read_checkpoint(packed).tensor(f"{Q_PROJ}.weight")
    assert not torch.equal(checkpoint.tensor(f"{Q_PROJ}.weight"), before)
