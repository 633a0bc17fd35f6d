import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.bundle import Bundle
from runtime_py.errors import RunError
from runtime_py.text_stream import TextStream
from tests.golden_traces.tokenizers import like_gemma
from tests.runtime_py.bundles import opened, write_fake_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_fake_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Bundle.open(bundle).tokenizer()


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


@pytest.fixture(scope="module", params=["bytes", "gemma"])
def streamed_tokenizer(request, tokenizer):
    return tokenizer if request.param == "bytes" else opened(like_gemma())


def pieces_of(tokenizer, token_ids, sizes):
    stream, pieces = TextStream(tokenizer), []
    for size in [*sizes, len(token_ids)]:
        pieces.append(stream.push(token_ids[:size]))
        token_ids = token_ids[size:]
    return [*pieces, stream.finish()]


cuts = st.lists(st.integers(0, 7), max_size=60)
rare = st.text(alphabet="aé€日🙂𓀀 \ufffd", max_size=60)


@given(text=st.text(max_size=60) | rare, sizes=cuts)
def test_streamed_pieces_add_up_to_the_text(streamed_tokenizer, text, sizes):
    token_ids = streamed_tokenizer.encode(text)
    assert "".join(pieces_of(streamed_tokenizer, token_ids, sizes)) == streamed_tokenizer.decode(
        token_ids
    )


@given(token_ids=st.lists(st.integers(0, 520), max_size=80), sizes=cuts)
def test_any_tokens_stream_as_they_are_decoded_at_once(streamed_tokenizer, token_ids, sizes):
    """Broken bytes, control tokens in the middle of a character, ids that are no tokens."""
    pieces = pieces_of(streamed_tokenizer, token_ids, sizes)
    assert "".join(pieces) == streamed_tokenizer.decode(token_ids)


@pytest.mark.parametrize("text", ["€" * 12, "𓀀𓀁𓀂𓀃𓀄𓀅 hieroglyphs", "日本語のテキスト"])
def test_a_long_run_of_byte_tokens_streams_as_text(text):
    tokenizer = opened(like_gemma())
    token_ids = tokenizer.encode(text)
    assert "".join(pieces_of(tokenizer, token_ids, [1] * len(token_ids))) == text


def test_each_token_is_decoded_a_bounded_number_of_times(streamed_tokenizer, monkeypatch):
    num_decoded = 0
    decode = streamed_tokenizer.decode

    def counted(token_ids):
        nonlocal num_decoded
        num_decoded += len(token_ids)
        return decode(token_ids)

    monkeypatch.setattr(streamed_tokenizer, "decode", counted)
    token_ids = streamed_tokenizer.encode("€" * 3000 + "abc" * 1000)
    pieces_of(streamed_tokenizer, token_ids, [1] * len(token_ids))
    assert num_decoded < 12 * len(token_ids)


def test_half_a_character_is_held_back(tokenizer):
    stream = TextStream(tokenizer)
    euro = tokenizer.encode("€")[1:]
    assert [stream.push([token_id]) for token_id in euro] == ["", "", "€"]
    assert stream.finish() == ""
    assert stream.push(euro[:1]) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


BEGIN, END = "<|turn>", "<turn|>"


def without_thoughts(text):
    """The rule of Gemma 4's own template, strip_thinking, without the trim at its end."""
    return "".join(part.split(BEGIN)[0] for part in text.split(END))


@given(
    parts=st.lists(st.sampled_from([BEGIN, END, "a", "€", " ", "<bos>", "two words"])), sizes=cuts
)
def test_thoughts_are_stripped_as_the_template_does(thinking_tokenizer, parts, sizes):
    text = "".join(parts)
    token_ids = thinking_tokenizer.encode(text)[1:]
    said = "".join(pieces_of(thinking_tokenizer, token_ids, sizes))
    assert said == without_thoughts(text).replace("<bos>", "")


@pytest.fixture(scope="module")
def thinking_tokenizer():
    return opened(like_gemma(), {"bos_token": "<bos>", "soc_token": BEGIN, "eoc_token": END})


@pytest.mark.parametrize(
    "special_tokens", [None, {}, {"soc_token": BEGIN}, {"soc_token": BEGIN, "eoc_token": "<none>"}]
)
def test_a_model_that_does_not_think_has_no_thoughts(special_tokens):
    tokenizer = opened(like_gemma(), special_tokens)
    assert tokenizer.thought is None
    assert "".join(pieces_of(tokenizer, tokenizer.encode(f"a{BEGIN}b"), [])) == "ab"


def altered(bundle, tmp_path, name, text):
    from shutil import copytree

    from runtime_py.manifest import file_entry

    copy = tmp_path / "copy"
    copytree(bundle, copy)
    (copy / name).write_text(text)
    values = json.loads((copy / "manifest.json").read_text())
    values["files"][name] = file_entry(copy / name).model_dump()
    (copy / "manifest.json").write_text(json.dumps(values))
    return Bundle.open(copy).tokenizer()


def test_a_bad_tokenizer_gives_one_line(bundle, tmp_path):
    with pytest.raises(RunError, match="not a tokenizer file"):
        altered(bundle, tmp_path, "tokenizer.json", "{}")
