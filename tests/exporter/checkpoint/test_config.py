"""Configurations that are refused, with one clear line each."""

import json
import random
import shutil

import pytest

from exporter.checkpoint.reader import read_checkpoint
from tests.exporter.damage import NONSENSE, complaint, edit_config, error_of


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"model_type": NaN', "[" * 100_000, "9" * 5000, "\ufeff{}"]
)
def test_a_config_that_is_no_object(target, text):
    (target / "config.json").write_text(text)
    assert "config.json" in error_of(read_checkpoint, target)


def test_a_config_that_is_no_text(target):
    (target / "config.json").write_bytes(b"\xff\x00\xff")
    assert "not a JSON object ('utf-8' codec" in error_of(read_checkpoint, target)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": True},
        {"hidden_activation": "silu"},
        {"use_bidirectional_attention": "all"},
        {"rope_scaling": {"type": "linear"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_feature_that_is_not_built(target, change):
    edit_config(target, **change)
    message = error_of(read_checkpoint, target)
    assert f"{next(iter(change))} is {next(iter(change.values()))!r}" in message


@pytest.mark.parametrize("rope_type", ["yarn", "linear", 3, None])
def test_an_unknown_rope(target, rope_type):
    edit_config(
        target, "rope_parameters", full_attention={"rope_type": rope_type, "rope_theta": 1e6}
    )
    message = error_of(read_checkpoint, target)
    assert "full_attention: rope_type" in message


@pytest.mark.parametrize("value", NONSENSE, ids=str)
@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim"]
)
def test_a_number_that_is_none(target, key, value):
    edit_config(target, per_layer_config=None, **{key: value})
    assert key in error_of(read_checkpoint, target)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_types", ["full_attention"]),
        ("layer_types", "full_attention"),
        ("layer_types", [[]] * 6),
        ("layer_types", ["full_attention"] * 5 + ["sliding_attention"]),
        ("num_key_value_heads", 3),
        ("head_dim", 7),
        ("num_kv_shared_layers", 6),
        ("num_kv_shared_layers", 4),  # no full layer left to own rows
        ("num_kv_shared_layers", "2"),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", "small"),
        ("final_logit_softcapping", -1),
        ("final_logit_softcapping", True),
        ("tie_word_embeddings", "yes"),
        ("use_double_wide_mlp", 1),
        ("enable_moe_block", 1),
        ("enable_moe_block", True),  # and no num_experts
        ("hidden_size_per_layer_input", None),
        ("hidden_size_per_layer_input", -8),
        ("vocab_size_per_layer_input", 3),
        ("sliding_window", 0),
        ("rope_parameters", []),
        ("rope_parameters", {"full_attention": {"rope_theta": 1e6}}),
        ("per_layer_config", []),
        ("per_layer_config", {"6": {"head_dim": 16}}),
        ("per_layer_config", {"x": {"head_dim": 16}}),
        ("per_layer_config", {"9" * 5000: {"head_dim": 16}}),
        ("per_layer_config", {"2": 16}),
        ("per_layer_config", {"2": {"sliding_window": 16}}),
        ("per_layer_config", {"2": {"head_dim": "16"}}),
        ("model_type", ["gemma4"]),
        ("model_type", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_that_makes_no_sense(target, key, value):
    edit_config(target, **{key: value})
    assert "config.json" in error_of(read_checkpoint, target)


def test_absurd_sizes_take_no_memory(target):
    edit_config(target, vocab_size=2**24, hidden_size=2**24, vocab_size_per_layer_input=2**24)
    assert "has shape" in error_of(read_checkpoint, target)


@pytest.mark.parametrize("seed", range(80))
def test_a_config_of_nonsense_gives_one_line_or_nothing(originals, tmp_path, seed):
    """Any value replaced by any other."""
    draw = random.Random(seed)
    shutil.copytree(originals[0], tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    key = draw.choice(sorted(config))
    config[key] = draw.choice([*NONSENSE, 7, 1e308, "x" * 10_000, "\n", [[]], {"0": {}}])
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    complaint(read_checkpoint, tmp_path / "odd")
