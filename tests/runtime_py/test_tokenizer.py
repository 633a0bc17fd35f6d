import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.errors import RunError
from runtime_py.manifest import read_manifest
from runtime_py.tokenizer import TextStream, Tokenizer
from tests.runtime_py.bundles import write_fake_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_fake_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Tokenizer(bundle, read_manifest(bundle))


def test_text_begins_with_one_bos_token(tokenizer):
    assert tokenizer.encode("hi")[0] == 0
    assert tokenizer.encode("<bos>hi") == tokenizer.encode("hi")
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"


def test_a_conversation_is_rendered_with_the_next_turn_open(tokenizer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    expected = "<bos>[user]a[/][assistant]b[/][user]c[/][model]"
    assert tokenizer.render_chat(messages) == expected
    assert tokenizer.encode_chat(messages) == tokenizer.encode(expected)


@given(text=st.text(max_size=60), cuts=st.lists(st.integers(1, 7), max_size=60))
def test_streamed_pieces_add_up_to_the_text(tokenizer, text, cuts):
    token_ids = tokenizer.encode(text)
    stream, pieces = TextStream(tokenizer), []
    for size in [*cuts, len(token_ids)]:
        pieces.append(stream.push(token_ids[:size]))
        token_ids = token_ids[size:]
    pieces.append(stream.finish())
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))


def test_half_a_character_is_held_back(tokenizer):
    stream = TextStream(tokenizer)
    euro = tokenizer.encode("€")[1:]
    assert [stream.push([token_id]) for token_id in euro] == ["", "", "€"]
    assert stream.finish() == ""
    assert stream.push(euro[:1]) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def altered(bundle, tmp_path, name, text):
    from shutil import copytree

    from runtime_py.manifest import file_entry

    copy = tmp_path / "copy"
    copytree(bundle, copy)
    (copy / name).write_text(text)
    values = json.loads((copy / "manifest.json").read_text())
    values["files"][name] = file_entry(copy / name).model_dump()
    (copy / "manifest.json").write_text(json.dumps(values))
    return Tokenizer(copy, read_manifest(copy))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "not a valid chat template"),
        ("{{ messages.__class__.__mro__ }}", "chat template failed: .*unsafe"),
        ("{{ raise_exception('no system role') }}", "chat template failed: no system role"),
        ("{{ 1 + 'a' }}", "chat template failed"),
        ("{{ messages[0].nothing.at_all }}", "chat template failed"),
    ],
)
def test_a_bad_chat_template_gives_one_line(bundle, tmp_path, template, said):
    with pytest.raises(RunError, match=said):
        altered(bundle, tmp_path, "chat_template.jinja", template).render_chat(
            [{"role": "user", "content": "hi"}]
        )


def test_a_bad_tokenizer_gives_one_line(bundle, tmp_path):
    with pytest.raises(RunError, match="not a tokenizer file"):
        altered(bundle, tmp_path, "tokenizer.json", "{}")
