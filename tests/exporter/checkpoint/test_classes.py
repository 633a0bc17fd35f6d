"""What transformers writes today for each Gemma 4 class is read: names, wrappers, types, shards."""

import dataclasses
import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.original.model import Original
from tests.exporter import tiny_models
from tests.exporter.tiny_models import E2B, UNIFIED_12B

TYPES = [torch.float32, torch.bfloat16, torch.float16]
TOWERS = {
    False: {
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "position_embedding_size": 8,
            "use_clipped_linears": True,
            "standardize": True,
        },
        "audio_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [8, 4],
            "output_proj_dims": 16,
        },
    },
    True: {
        "vision_config": {"patch_size": 2, "mm_embed_dim": 8, "mm_posemb_size": 4},
        "audio_config": {"audio_embed_dim": 8},
    },
}
CLASSES = {
    "Gemma4ForConditionalGeneration": E2B,
    "Gemma4ForCausalLM": E2B,
    "Gemma4TextModel": E2B,
    "Gemma4Model": E2B,
    "Gemma4UnifiedForConditionalGeneration": UNIFIED_12B,
    "Gemma4UnifiedForCausalLM": UNIFIED_12B,
    "Gemma4UnifiedTextModel": UNIFIED_12B,
    "Gemma4UnifiedModel": UNIFIED_12B,
}


def build(name: str, shape: tiny_models.Shape) -> Any:
    """A model of the class, with its towers where it has any."""
    model_class = getattr(transformers, name)
    config = tiny_models.text_config(shape)
    if model_class.config_class is not type(config):
        config = model_class.config_class(text_config=config.to_dict(), **TOWERS[shape.unified])
    torch.manual_seed(3)
    return tiny_models.randomised(model_class(config), 3)


def decoder_of(model: Any) -> Any:
    inner = getattr(model, "model", model)
    return getattr(inner, "language_model", inner)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_a_target_of_every_class(name, dtype, tmp_path):
    model = build(name, CLASSES[name]).to(dtype)
    whole = tiny_models.save(model, tmp_path / "whole")
    shards = tiny_models.save(model, tmp_path / "shards", "15KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    expected = decoder_of(model).state_dict()
    stored = load_file(whole / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} >= {dtype}
    for checkpoint in (read_checkpoint(whole), read_checkpoint(shards)):
        assert set(checkpoint.names()) == set(expected)
        for key, tensor in expected.items():
            assert torch.equal(checkpoint.tensor(key), tensor.float())


def test_the_published_names_of_the_unified_vision_part(tmp_path):
    """transformers renames vision_embedder.* when it loads, and back when it saves."""
    folder = tiny_models.save(build("Gemma4UnifiedForConditionalGeneration", UNIFIED_12B), tmp_path)
    names = load_file(folder / "model.safetensors")
    assert any(name.startswith("model.vision_embedder.") for name in names)
    assert any(name.startswith("model.embed_vision.") for name in names)
    assert any(name.startswith("model.embed_audio.") for name in names)
    assert read_checkpoint(folder).names()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [E2B, UNIFIED_12B], ids=["gemma4", "unified"])
@pytest.mark.parametrize("centroids", [0, 16])
def test_a_drafter_of_every_class(shape, dtype, centroids, tmp_path):
    shape = dataclasses.replace(shape, centroids=centroids)
    target = read_checkpoint(tiny_models.save(tiny_models.target_model(shape, 1), tmp_path / "t"))
    model = tiny_models.drafter_model(shape, 2).to(dtype)
    expected = {
        name.removeprefix("model."): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("lm_head")
    }
    whole = tiny_models.save(model, tmp_path / "whole")
    shards = tiny_models.save(model, tmp_path / "shards", "3KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    for folder in (whole, shards):
        checkpoint = read_drafter(folder, target)
        assert set(checkpoint.names()) == set(expected)
        for key, tensor in expected.items():
            if key == "masked_embedding.token_ordering":
                assert torch.equal(checkpoint.integers(key), tensor.int())
            else:
                assert torch.equal(checkpoint.tensor(key), tensor.float())


@pytest.mark.parametrize("name", CLASSES)
def test_the_original_of_every_class_speaks(name, tmp_path):
    """Whatever class wrote it, and whatever config.json calls it."""
    model = build(name, CLASSES[name])
    folder = tiny_models.save(model, tmp_path)
    logits = Original(read_checkpoint(folder), None).read([1, 2, 3])
    config = json.loads((folder / "config.json").read_text())
    for architectures in (None, ["logging"], ["Gemma4TextModel"]):
        (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
        assert torch.equal(Original(read_checkpoint(folder), None).read([1, 2, 3]), logits)
    with torch.no_grad():
        hidden = decoder_of(model)(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state
    scores = hidden[0] @ decoder_of(model).embed_tokens.weight.T
    assert torch.allclose(torch.tanh(scores / 30) * 30, logits, atol=1e-4)
