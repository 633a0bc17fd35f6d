"""generation_config.json: what of it is applied, refused, or warned of."""

import json

import pytest
from transformers import GenerationConfig

from exporter.checkpoint.generation import NOT_BUILT, NOT_SAMPLED, read_generation, report_ignored
from exporter.checkpoint.reader import read_checkpoint
from exporter.errors import ExportError


def write(folder, **settings):
    (folder / "generation_config.json").write_text(json.dumps(settings))


def test_suppressed_tokens_reach_the_graphs(target):
    assert read_checkpoint(target).spec.suppressed_ids == ()
    write(target, suppress_tokens=[9, 3])
    assert read_checkpoint(target).spec.suppressed_ids == (3, 9)


@pytest.mark.parametrize(
    "ids", ["3", [64], [-1], [1.5], [True], [3, 3], [["3"]], list(range(64)), 3, {}]
)
def test_suppressed_tokens_that_are_none(target, ids):
    write(target, suppress_tokens=ids)
    with pytest.raises(ExportError, match=r"generation_config.json: suppress_tokens is .*correct"):
        read_checkpoint(target)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("begin_suppress_tokens", [5]),
        ("bad_words_ids", [[5]]),
        ("repetition_penalty", 1.1),
        ("no_repeat_ngram_size", 2),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("forced_eos_token_id", 1),
        ("min_new_tokens", 5),
        ("sequence_bias", [[[5], 1.0]]),
        ("num_beams", 4),
        ("guidance_scale", 1.5),
        ("stop_strings", ["x"]),
        ("watermarking_config", {}),
        ("token_healing", True),
        ("penalty_alpha", "\x1b[2J"),
    ],
)
def test_what_changes_greedy_text_and_is_not_built_is_refused(target, key, value):
    write(target, **{key: value})
    with pytest.raises(ExportError, match=f"{key} is .* not supported; remove it") as said:
        read_checkpoint(target)
    assert "\x1b" not in str(said.value)


def test_values_that_change_nothing_pass(target):
    for key, harmless in NOT_BUILT.items():
        for value in (None, *harmless):
            write(target, **{key: value}, max_new_tokens=5, renormalize_logits=True)
            read_checkpoint(target)


def test_every_setting_named_is_one_of_transformers():
    assert {*NOT_BUILT, *NOT_SAMPLED} <= set(vars(GenerationConfig()))


def test_without_the_file_config_json_holds_the_settings(target):
    """As transformers' GenerationConfig.from_model_config reads old checkpoints."""
    config = json.loads((target / "config.json").read_text())
    (target / "generation_config.json").unlink(missing_ok=True)
    (target / "config.json").write_text(json.dumps({**config, "suppress_tokens": [7]}))
    assert read_checkpoint(target).spec.suppressed_ids == (7,)
    inner = {"suppress_tokens": None, "text_config": {"suppress_tokens": [7], "top_k": 4}}
    assert read_generation(target, inner)["suppress_tokens"] == [7]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": 10**30}, "temperature is 1000"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": 0, "do_sample": True}, "temperature is 0"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": "1"}, "top_p is '1'"),
        ({"do_sample": "yes"}, "do_sample is 'yes'"),
    ],
)
def test_sampling_numbers_that_are_none(target, settings, said):
    write(target, **settings)
    with pytest.raises(ExportError, match=rf"generation_config.json: {said}.*, needed is "):
        read_generation(target, {})


def test_sampling_that_is_not_built_is_warned_of(target, caplog):
    report_ignored({"min_p": 0.1}, target)
    report_ignored({"min_p": 0, "typical_p": 1.0, "do_sample": True}, target)
    assert not caplog.messages
    report_ignored({"min_p": 0.1, "eta_cutoff": 0.3, "do_sample": True}, target)
    assert "ignored when sampling: eta_cutoff, min_p" in caplog.text
