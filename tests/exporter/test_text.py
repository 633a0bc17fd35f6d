import json

import pytest

from exporter.errors import ExportError
from exporter.text import read_text_files


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    write(tmp_path, "config.json", {"bos_token_id": 2, "eos_token_id": 1})
    return tmp_path


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
    write(checkpoint, "tokenizer_config.json", {"chat_template": "a{% generation %}b"})
    assert read_text_files(checkpoint).chat_template == "ab"
    (checkpoint / "chat_template.jinja").write_text("c")
    assert read_text_files(checkpoint).chat_template == "c"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", '{"eos_token_id": 1}', "bos_token_id is None"),
        ("config.json", '{"bos_token_id": 2}', "eos_token_id is None"),
        ("config.json", '{"bos_token_id": 2, "eos_token_id": ["x"]}', "eos_token_id is"),
        ("config.json", "[]", "not a JSON object"),
        ("generation_config.json", "{", "not valid JSON"),
    ],
)
def test_what_is_missing_or_malformed_is_named(checkpoint, name, content, said):
    (checkpoint / name).write_text(content)
    with pytest.raises(ExportError, match=said):
        read_text_files(checkpoint)


def test_a_folder_without_tokenizer_is_refused(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"no tokenizer\.json"):
        read_text_files(checkpoint)
