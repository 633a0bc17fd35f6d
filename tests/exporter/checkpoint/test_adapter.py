"""LoRA adapters against peft: merged weights are the same bits, whatever rows are asked for."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from exporter.checkpoint.adapter import Delta
from exporter.checkpoint.files import open_file
from exporter.checkpoint.names import normalised_names
from exporter.checkpoint.reader import read_checkpoint
from exporter.config import load_size
from exporter.original.model import Original
from tests.exporter import tiny_models
from tests.exporter.checkpoint import adapters
from tests.exporter.damage import error_of
from tests.exporter.tiny_models import UNIFIED_12B, UNTIED

ATTENTION = ["q_proj", "o_proj"]
OPTIONS = {
    "list": {"target_modules": [*ATTENTION, "down_proj"]},
    "every linear": {"target_modules": "all-linear"},
    "regular expression": {"target_modules": r".*layers\.[135]\.(mlp|self_attn)\..*_proj"},
    "some layers": {"target_modules": ATTENTION, "layers_to_transform": [0, 2]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True, "r": 3},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"down_proj": 7, r"layers\.1\.self_attn\.q_proj": 1},
        "alpha_pattern": {r"^model.layers.\d.mlp.up_proj": 11, "self_attn.q_proj": 0.3},
    },
    "fan_in_fan_out": {"target_modules": ATTENTION, "fan_in_fan_out": True},
    "whole modules": {
        "target_modules": ATTENTION,
        "modules_to_save": ["input_layernorm", "gate_proj"],
    },
    "drop-out and bias": {"target_modules": ATTENTION, "lora_dropout": 0.1, "bias": "all"},
}


def peft_tensors(model) -> dict[str, torch.Tensor]:
    """By normalised name."""
    tensors = model.state_dict()
    return {name: tensors[raw] for name, raw in normalised_names(tensors, "peft").items()}


@pytest.fixture
def adapter(originals, tmp_path) -> Path:
    return adapters.make_adapter(originals[0], tmp_path / "lora", target_modules=ATTENTION)


def assert_equal_to_peft(base: Path, adapter: Path) -> int:
    """Returns the number of tensors that differ from the base's."""
    merged = peft_tensors(adapters.peft_model(base, adapter).merge_and_unload())
    before, found = read_checkpoint(base), read_checkpoint(base, adapter)
    assert found.names() == before.names()
    for name in found.names():
        assert torch.equal(found.tensor(name), merged[name]), name
        assert found.shape(name) == before.shape(name)
    return sum(not torch.equal(merged[name], before.tensor(name)) for name in found.names())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_merged_weights_are_pefts_bit_for_bit(options, originals, tmp_path):
    adapter = adapters.make_adapter(originals[0], tmp_path / "lora", **options)
    assert assert_equal_to_peft(originals[0], adapter) > 3


@pytest.mark.parametrize("shape", [UNIFIED_12B, UNTIED], ids=["unified", "untied"])
@pytest.mark.parametrize("multimodal", [False, True])
def test_other_kinds_of_models(shape, multimodal, tmp_path):
    base = tiny_models.save(tiny_models.target_model(shape, 5, multimodal), tmp_path / "base")
    modules = ["q_proj", "up_proj", *(["embed_tokens", "lm_head"] if not shape.tied else [])]
    adapter = adapters.make_adapter(base, tmp_path / "lora", target_modules=modules)
    assert_equal_to_peft(base, adapter)


def test_the_tiny_model_with_every_linear_layer_and_its_table(tmp_path):
    base = load_size("tiny").model
    modules = [*ATTENTION, "k_proj", "gate_proj", "per_layer_projection", "embed_tokens_per_layer"]
    adapter = adapters.make_adapter(base, tmp_path / "lora", r=16, target_modules=modules)
    assert_equal_to_peft(base, adapter)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adapters_are_merged_in_float32(dtype, adapter, originals):
    adapters.edit_tensors(
        adapter, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()})
    )
    assert_equal_to_peft(originals[0], adapter)


@pytest.mark.parametrize("num_rows", [5, 33, 257])
@pytest.mark.parametrize(("num_columns", "rank"), [(333, 1), (100, 64), (1536, 16), (2000, 300)])
@pytest.mark.parametrize("of_embedding", [False, True])
def test_rows_are_the_whole_products_bit_for_bit(
    num_rows, num_columns, rank, of_embedding, tmp_path
):
    torch.manual_seed(num_rows + num_columns)
    a, b = torch.randn(rank, num_columns), torch.randn(num_rows, rank)
    if of_embedding:
        a, b = torch.randn(rank, num_rows), torch.randn(num_columns, rank)
    whole = (b @ a).T * 0.7 if of_embedding else (b @ a) * 0.7
    save_file({"a": a, "b": b}, tmp_path / "f")
    files = open_file(tmp_path / "f")
    delta = Delta(files["a"], files["b"], 0.7, of_embedding)
    assert delta.shape == (num_rows, num_columns)
    for step in (1, 3, 31, 64, 500):
        rows = [delta.rows(i, min(i + step, num_rows)) for i in range(0, num_rows, step)]
        assert torch.equal(torch.cat(rows), whole), step
    assert delta.rows(3, 3).shape == (0, num_columns)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ],
)
def test_a_tied_head_becomes_what_was_trained(options, originals, tmp_path):
    """merge_and_unload adds a change of one of the two to both; what was trained is the sum."""
    base = originals[0]
    adapter = adapters.make_adapter(base, tmp_path / "lora", **options)
    checkpoint = read_checkpoint(base, adapter)
    assert checkpoint.spec.tied_head == options.get("ensure_weight_tying", False)
    assert ("lm_head.weight" in checkpoint.names()) != checkpoint.spec.tied_head
    token_ids = [3, 60, 7, 7, 12]
    with torch.inference_mode():
        trained = adapters.peft_model(base, adapter)(input_ids=torch.tensor([token_ids])).logits
        found = Original(checkpoint, None).read(token_ids)
    np.testing.assert_allclose(found, trained[0], atol=2e-4)


def test_other_modalities_are_left_out_by_name(adapter, originals):
    before = read_checkpoint(originals[0], adapter)

    def add(tensors):
        tensors["base_model.model.model.vision_tower.x.lora_A.weight"] = torch.ones(4, 3)
        tensors["base_model.model.model.vision_tower.x.lora_B.weight"] = torch.ones(2, 4)

    adapters.edit_tensors(adapter, add)
    found = read_checkpoint(originals[0], adapter)
    assert found.adapter.ignored == ("model.vision_tower.x",)
    assert found.adapter.names == before.adapter.names


def test_a_layer_that_shares_its_keys_has_none_to_change(adapter, originals):
    """Older releases kept the projections; the model ignores them, and so what is added."""

    def add(tensors):
        tensors["base_model.model.model.layers.4.self_attn.k_proj.lora_A.weight"] = torch.ones(4, 3)
        tensors["base_model.model.model.layers.4.self_attn.k_proj.lora_B.weight"] = torch.ones(2, 4)

    names = read_checkpoint(originals[0], adapter).names()
    adapters.edit_tensors(adapter, add)
    assert read_checkpoint(originals[0], adapter).names() == names


def test_names_of_an_adapter_in_memory(adapter, originals):
    """As torch.save of a PeftModel's state names them, with the adapter's own name."""
    expected = read_checkpoint(originals[0], adapter)

    def change(tensors):
        for name in list(tensors):
            tensors[name.replace(".weight", ".default.weight")] = tensors.pop(name)

    adapters.edit_tensors(adapter, change)
    found = read_checkpoint(originals[0], adapter)
    assert found.adapter.names == expected.adapter.names
    name = min(found.adapter.names)
    assert torch.equal(found.tensor(name), expected.tensor(name))


def test_an_adapter_of_mlx(adapter, originals):
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 8, "scale": 10.0}}
    (adapter / adapters.CONFIG).write_text(json.dumps(config))
    (adapter / adapters.WEIGHTS).rename(adapter / "adapters.safetensors")
    said = error_of(read_checkpoint, originals[0], adapter)
    assert "an MLX adapter" in said
    assert "mlx_lm.fuse" in said


def test_an_adapter_that_git_lfs_left_out(adapter, originals):
    (adapter / adapters.WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "`git lfs pull`" in error_of(read_checkpoint, originals[0], adapter)


REFUSED = [
    {"peft_type": "LOHA"},
    {"peft_type": "ADALORA"},
    {"peft_type": None},
    {"use_dora": True},
    {"use_qalora": True},
    {"lora_bias": True},
    {"alora_invocation_tokens": [1, 2]},
    {"trainable_token_indices": [5]},
    {"target_parameters": ["experts.down_proj"]},
    {"layer_replication": [[0, 2], [1, 3]]},
    {"init_lora_weights": "pissa_niter_4"},
    {"init_lora_weights": "loftq"},
    {"something_new": {"x": 1}},
]


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_what_is_no_plain_lora_is_refused_by_name(changes, adapter, originals):
    adapters.edit_config(adapter, **changes)
    said = error_of(read_checkpoint, originals[0], adapter)
    assert next(iter(changes)) in said
    assert "merge_and_unload" in said


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"r": 5}, "rank 4"),
        ({"r": None}, "None"),
        ({"r": True}, "True"),
        ({"lora_alpha": "8"}, "'8'"),
        ({"lora_alpha": 10**400}, "401 digits"),
        ({"lora_alpha": math.inf}, "Infinity is not JSON"),
        ({"lora_alpha": math.nan}, "NaN is not JSON"),
        ({"rank_pattern": [1]}, "needed an object"),
        ({"rank_pattern": {"(a+)+b": 1}}, "too complex"),
        ({"rank_pattern": {"(": 1}}, "not a regular expression"),
        ({"alpha_pattern": {"q_proj": []}}, "needed a number"),
    ],
)
def test_absurd_configurations(changes, complaint, adapter, originals):
    adapters.edit_config(adapter, **changes)
    assert complaint in error_of(read_checkpoint, originals[0], adapter)


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        (f"{Q_PROJ}lora_A.weight", None, "only one of lora_A.weight and lora_B.weight"),
        (f"{Q_PROJ}lora_A.weight", torch.zeros(4, 5), "[32, 5]"),
        (f"{Q_PROJ}lora_A.weight", torch.zeros(5, 32), "matrices of one rank"),
        (f"{Q_PROJ}lora_A.weight", torch.zeros(4), "matrices of one rank"),
        (f"{Q_PROJ}lora_A.weight", torch.zeros(4, 32, dtype=torch.int8), "I8"),
        ("base_model.model.model.layers.99.mlp.up_proj.weight", torch.zeros(2), "layers.99"),
        (f"{Q_PROJ}lora_magnitude_vector", torch.zeros(32), "lora_magnitude_vector"),
        ("base_model.model.model.norm.weight", torch.zeros(31), "[31]"),
        ("base_model.model.model.embed_tokens.weight", torch.zeros(70, 32), "vocabulary"),
    ],
)
def test_tensors_that_do_not_fit(name, tensor, complaint, adapter, originals):
    def change(tensors):
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor

    adapters.edit_tensors(adapter, change)
    assert complaint in error_of(read_checkpoint, originals[0], adapter)


def test_folders_that_are_no_adapters(adapter, originals, tmp_path):
    base = originals[0]
    assert "nowhere: no such folder" in error_of(read_checkpoint, base, tmp_path / "nowhere")
    assert "no adapter_config.json" in error_of(read_checkpoint, base, base)
    assert "--adapter" in error_of(read_checkpoint, adapter)
    weights = adapter / adapters.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    assert "truncated" in error_of(read_checkpoint, base, adapter)
    weights.unlink()
    assert "no adapter_model.safetensors" in error_of(read_checkpoint, base, adapter)
    (adapter / "adapter_model.bin").write_bytes(b"x")
    assert "pickle" in error_of(read_checkpoint, base, adapter)
    save_file({}, weights)
    assert "changes no tensor" in error_of(read_checkpoint, base, adapter)


def test_the_adapters_own_tokenizer_and_template_win(adapter):
    from exporter.text.files import read_text_files

    base = load_size("tiny").model
    assert read_text_files(base, adapter).folder == base
    shutil.copy(base / "tokenizer.json", adapter)
    assert read_text_files(base, adapter).folder == base
    (adapter / "chat_template.jinja").write_text("mine")
    text = read_text_files(base, adapter)
    assert (text.folder, text.chat_template) == (adapter, "mine")
    assert text.tokenizer == adapter / "tokenizer.json"
