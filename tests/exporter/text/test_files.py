import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from exporter.config import load_size
from exporter.errors import ExportError
from exporter.text.files import OriginalTokenizer, read_text_files


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    write(tmp_path, "config.json", {"bos_token_id": 2, "eos_token_id": 1})
    return tmp_path


@pytest.fixture
def tiny_tokenizer(tmp_path):
    """The tiny model's, which a test may spoil."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(Path(str(load_size("tiny").model)) / name, folder / name)
    return folder


def write(folder, name, data):
    (folder / name).write_text(json.dumps(data))


def test_stop_tokens_of_the_generation_config_come_first(checkpoint):
    assert read_text_files(checkpoint).stop_token_ids == (1,)
    write(checkpoint, "generation_config.json", {"eos_token_id": [1, 106]})
    assert read_text_files(checkpoint).stop_token_ids == (1, 106)


def test_a_multimodal_config_keeps_its_tokens_one_level_down(checkpoint):
    write(checkpoint, "config.json", {"text_config": {"bos_token_id": 5, "eos_token_id": [7]}})
    text = read_text_files(checkpoint)
    assert (text.bos_token_id, text.stop_token_ids) == (5, (7,))


def test_the_template_lies_in_its_own_file_or_in_the_tokenizers(checkpoint):
    assert read_text_files(checkpoint).chat_template is None
    write(checkpoint, "chat_template.json", {"chat_template": "of the processor"})
    assert read_text_files(checkpoint).chat_template == "of the processor"
    write(checkpoint, "tokenizer_config.json", {"chat_template": "a{%- generation %}b"})
    assert read_text_files(checkpoint).chat_template == "a{%- if true %}b"
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "d"}]
    write(checkpoint, "tokenizer_config.json", {"chat_template": several})
    assert read_text_files(checkpoint).chat_template == "d"
    (checkpoint / "chat_template.jinja").write_text("c")
    assert read_text_files(checkpoint).chat_template == "c"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", '{"eos_token_id": 1}', "bos_token_id is None"),
        ("config.json", '{"bos_token_id": 2}', "eos_token_id is None"),
        ("config.json", '{"bos_token_id": 2, "eos_token_id": ["x"]}', "eos_token_id is"),
        ("config.json", '{"bos_token_id": true, "eos_token_id": 1}', "bos_token_id is True"),
        ("config.json", '{"bos_token_id": -1, "eos_token_id": 1}', "bos_token_id is -1"),
        (
            "config.json",
            '{"bos_token_id": 8, "eos_token_id": 1, "vocab_size": 8}',
            "of the vocabulary",
        ),
        ("config.json", f'{{"bos_token_id": {10**30}, "eos_token_id": 1}}', "bos_token_id is 1000"),
        ("config.json", f'{{"bos_token_id": 2, "eos_token_id": {10**30}}}', "eos_token_id is 1000"),
        ("config.json", f'{{"bos_token_id": 2, "eos_token_id": {[1] * 65}}}', "eos_token_id is"),
        ("config.json", "[]", "not a JSON object"),
        ("generation_config.json", '{"temperature": "hot"}', "temperature is 'hot'"),
        ("generation_config.json", '{"top_k": 1.5}', "top_k is 1.5"),
        ("tokenizer_config.json", '{"chat_template": [7]}', "chat_template is"),
        ("generation_config.json", "{", "not a JSON object"),
    ],
)
def test_what_is_missing_or_malformed_is_named(checkpoint, name, content, said):
    (checkpoint / name).write_text(content)
    with pytest.raises(ExportError, match=said):
        read_text_files(checkpoint)


def test_a_template_that_is_no_text(checkpoint):
    (checkpoint / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match="cannot be read as text"):
        read_text_files(checkpoint)


@pytest.mark.parametrize("value", [-1, "0", 10**30, None])
def test_a_padding_token_that_is_none_is_left_out(checkpoint, value):
    values = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": value, "text_config": None}
    write(checkpoint, "config.json", values)
    assert read_text_files(checkpoint).pad_token_id is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_tokenizer_that_transformers_cannot_load(tiny_tokenizer, name, content):
    (tiny_tokenizer / name).write_text(content)
    with pytest.raises(ExportError, match="transformers cannot load the tokenizer"):
        OriginalTokenizer(tiny_tokenizer)


def test_the_code_of_a_checkpoint_is_never_run_nor_asked_about(tiny_tokenizer, tmp_path):
    """transformers would ask on the terminal."""
    auto_map = {"AutoTokenizer": ["odd.OddTokenizer", None]}
    write(tiny_tokenizer, "tokenizer_config.json", {"auto_map": auto_map})
    (tiny_tokenizer / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with suppress(ExportError):
        OriginalTokenizer(tiny_tokenizer)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("template", ["{% if", "{{ messages.a.b }}", "{{ raise_exception('no') }}"])
def test_a_template_that_fails(tiny_tokenizer, template):
    (tiny_tokenizer / "chat_template.jinja").write_text(template)
    with pytest.raises(ExportError, match="the chat template fails"):
        OriginalTokenizer(tiny_tokenizer).encode_chat([{"role": "user", "content": "hi"}])


def test_a_folder_without_tokenizer_is_refused(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"no tokenizer\.json"):
        read_text_files(checkpoint)
