"""The bundle's text side against transformers', with the tiny model's tokenizer."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from exporter.config import load_size
from exporter.errors import ExportError
from exporter.original.record import Prompt
from exporter.text.files import read_text_files, token_entry
from exporter.text.proof import prove_text
from runtime_py.bundle.tokenizer import Tokenizer

VOCAB_SIZE = 4096
CHAT, TEXT = Prompt("chat", "Hello there!"), Prompt("text", "The argparse module")
CONVERSATIONS = [
    [{"role": "user", "content": " Hi! "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4\n"},
        {"role": "user", "content": "And in words?"},
    ],
]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Written after the published format of Gemma 4: a system turn, thoughts stripped, tools by name.
LIKE_GEMMA = """\
{%- macro strip_thinking(text) -%}
    {%- set ns = namespace(result='') -%}
    {%- for part in text.split('<channel|>') -%}
        {%- set ns.result = ns.result + part.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- ns.result | trim -}}
{%- endmacro -%}
{{ bos_token }}
{%- set thinking = enable_thinking is defined and enable_thinking -%}
{%- set first = 0 -%}
{%- if thinking or tools or messages[0]['role'] in ['system', 'developer'] -%}
    {{- '<|turn>system\n' -}}
    {%- if thinking -%}{{- '<|think|>\n' -}}{%- endif -%}
    {%- if messages[0]['role'] in ['system', 'developer'] -%}
        {{- messages[0]['content'] | trim -}}
        {%- set first = 1 -%}
    {%- endif -%}
    {%- for tool in tools or [] -%}{{- tool | tojson -}}{%- endfor -%}
    {{- '<turn|>\n' -}}
{%- endif -%}
{%- for message in messages[first:] -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<|turn>' + role + '\n' -}}
    {%- if role == 'model' -%}{{- strip_thinking(message['content']) -}}
    {%- else -%}{{- message['content'] | trim -}}{%- endif -%}
    {{- '<turn|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\n' -}}{%- endif -%}
"""
TEMPLATES = {
    "eos": "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
    "every token": "{{ bos_token + eos_token + unk_token + pad_token + mask_token }}",
    "unset": "{{ sep_token }}{{ cls_token is defined }}{{ messages[-1].content }}",
    "own": "{{ soc_token }}{{ messages[-1].content }}",
    "tools": "{% if tools is not none %}TOOLS{% endif %}{{ messages[-1].content }}",
    "documents": "{% if documents %}{{ documents[0].x }}{% endif %}{{ documents is none }}",
    "filters": "{{ messages | tojson(indent=1, sort_keys=true) }}{% set n = namespace(a=1) %}"
    "{{ dict(a=n.a).items() | list }}{{ strftime_now('%Y') }}",
    "tags": "{% for m in messages %} {%- generation -%}\n {{ m.content }} {% endgeneration %}\n"
    "{% if m.role == 'assistant' %}{% continue %}{% endif %}!{% endfor %}",
    "chatml": CHATML,
    "like gemma": LIKE_GEMMA,
}


@pytest.fixture
def checkpoint(tmp_path):
    """The tiny model's text side, which a test may change."""
    return copied(tmp_path)


def copied(folder):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(Path(str(load_size("tiny").model)) / name, folder / name)
    edit(folder / "tokenizer_config.json", soc_token="<|channel>")
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return AutoTokenizer.from_pretrained(copied(tmp_path_factory.mktemp("theirs")))


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | changes))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(checkpoint, theirs, name):
    (checkpoint / "chat_template.jinja").write_text(TEMPLATES[name])
    text = read_text_files(checkpoint)
    special_tokens = prove_text(text, [CHAT], VOCAB_SIZE).special_tokens
    entry = token_entry(text, special_tokens)
    ours = Tokenizer(text.tokenizer, entry, text.chat_template, 2048)
    assert ours.render_chats(CONVERSATIONS) == [
        theirs.apply_chat_template(
            conversation,
            chat_template=TEMPLATES[name],
            tokenize=False,
            add_generation_prompt=True,
        )
        for conversation in CONVERSATIONS
    ]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no') }}", "the chat template fails: no"),
        ("{{ [1] * 10 ** 9 }}", "more than 512 MiB"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "recursion"),
    ],
)
def test_a_template_that_fails_or_never_ends_is_refused_first(checkpoint, template, said):
    (checkpoint / "chat_template.jinja").write_text(template)
    with pytest.raises(ExportError, match=said):
        prove_text(read_text_files(checkpoint), [CHAT], VOCAB_SIZE)


def test_without_a_template_the_text_prompts_are_recorded(checkpoint, caplog):
    (checkpoint / "chat_template.jinja").unlink()
    text = read_text_files(checkpoint)
    with caplog.at_level(logging.WARNING):
        proven = prove_text(text, [CHAT, TEXT], VOCAB_SIZE)
    assert [said for said, _ in proven.prompts] == [TEXT.text]
    assert "no chat template: recording the 1 text prompts, leaving out 1 chats" in caplog.text
    with pytest.raises(ExportError, match="all 1 prompts are chats"):
        prove_text(text, [CHAT], VOCAB_SIZE)


def test_a_template_of_the_processor_alone_is_used(checkpoint):
    (checkpoint / "chat_template.jinja").rename(checkpoint / "moved")
    template = {"chat_template": (checkpoint / "moved").read_text()}
    (checkpoint / "chat_template.json").write_text(json.dumps(template))
    proven = prove_text(read_text_files(checkpoint), [CHAT], VOCAB_SIZE)
    (checkpoint / "moved").rename(checkpoint / "chat_template.jinja")
    assert proven == prove_text(read_text_files(checkpoint), [CHAT], VOCAB_SIZE)


@pytest.mark.parametrize(("stops", "warned"), [([1, 6], False), ([1], True)])
def test_a_turn_that_ends_with_no_stop_token_is_said(checkpoint, caplog, stops, warned):
    edit(checkpoint / "config.json", eos_token_id=stops)
    with caplog.at_level(logging.WARNING):
        prove_text(read_text_files(checkpoint), [CHAT], VOCAB_SIZE)
    assert ("ends a turn with <turn|>, token 6" in caplog.text) == warned


def test_a_token_that_tokenizer_json_lacks_is_named(checkpoint):
    edit(checkpoint / "tokenizer_config.json", pad_token="[PAD]")
    with pytest.raises(ExportError, match=r"token '\[PAD\]' is \d+ there, and None in tokenizer"):
        prove_text(read_text_files(checkpoint), [TEXT], VOCAB_SIZE)


def test_another_tokenizer_json_is_refused(checkpoint, tmp_path):
    other = tmp_path / "other.json"
    values = json.loads((checkpoint / "tokenizer.json").read_text())
    values["normalizer"] = {"type": "Lowercase"}
    other.write_text(json.dumps(values))
    text = replace(read_text_files(checkpoint), tokenizer=other)
    with pytest.raises(ExportError, match=r"turns .* into .*, transformers' into"):
        prove_text(text, [TEXT], VOCAB_SIZE)


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "the tokenizer fails"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "//"}, "crash the process"),
        ("decoder", {"type": "none such"}, "transformers cannot load the tokenizer"),
    ],
)
def test_a_tokenizer_that_breaks_the_library_is_one_line(checkpoint, section, value, said, capfd):
    edit(checkpoint / "tokenizer.json", **{section: value})
    with pytest.raises(ExportError, match=said):
        prove_text(read_text_files(checkpoint), [TEXT], VOCAB_SIZE)
    assert "panicked" not in capfd.readouterr().err


def test_padding_and_truncation_are_ignored_by_both(checkpoint):
    plain = prove_text(read_text_files(checkpoint), [TEXT, CHAT], VOCAB_SIZE)
    padding = {
        "strategy": {"Fixed": 10**12},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    truncation = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    edit(checkpoint / "tokenizer.json", padding=padding, truncation=truncation)
    assert prove_text(read_text_files(checkpoint), [TEXT, CHAT], VOCAB_SIZE) == plain


def test_prompts_keep_their_order_and_their_kind(checkpoint):
    prompts = [CHAT, TEXT, Prompt("chat", "Bye"), TEXT] * 60
    encoded = prove_text(read_text_files(checkpoint), prompts, VOCAB_SIZE).prompts
    assert [said for said, _ in encoded] == [prompt.text for prompt in prompts]
    ids = dict(encoded)
    assert ids[CHAT.text][1] == ids["Bye"][1] != ids[TEXT.text][1]  # <|turn>


def test_tokens_beyond_the_models_are_refused(checkpoint):
    with pytest.raises(ExportError, match="the model has 100"):
        prove_text(read_text_files(checkpoint), [TEXT], 100)
