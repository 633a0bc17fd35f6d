import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import TokenEntry
from runtime_py.bundle.text_stream import TextStream
from runtime_py.bundle.tokenizer import Tokenizer
from runtime_py.errors import RunError
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

    from runtime_py.bundle.manifest import file_entry

    copy = tmp_path / "copy"
    copytree(bundle, copy)
    (copy / name).write_text(text)
    values = json.loads((copy / "manifest.json").read_text())
    values["files"][name] = file_entry(copy / name).model_dump()
    (copy / "manifest.json").write_text(json.dumps(values))
    return Bundle.open(copy).tokenizer()


def changed(tmp_path, **changes):
    """Gemma's kind of tokenizer with other sections."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(like_gemma().to_str()) | changes))
    tokens = TokenEntry(tokenizer="t", chat_template=None, bos_token_id=None, stop_token_ids=())
    return Tokenizer(path, tokens, None, 512)


PADDING = {
    "strategy": {"Fixed": 10**12},
    "direction": "Right",
    "pad_to_multiple_of": 10**12,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<pad>",
}
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize("changes", [{"padding": PADDING}, {"truncation": TRUNCATION}])
def test_nothing_is_padded_or_cut_as_in_transformers(tmp_path, changes):
    """A padding of 10^12 tokens ended the process."""
    plain = opened(like_gemma()).encode("The argparse module")[1:]
    assert changed(tmp_path, **changes).encode("The argparse module") == plain


SURE_PANICS = {
    "pre_tokenizer": {"type": "FixedLength", "length": 0},
    "post_processor": {"type": "ByteLevel", "trim_offsets": 1},
}


@pytest.mark.parametrize("section", SURE_PANICS)
def test_a_panic_of_the_library_is_one_line(tmp_path, section, capfd):
    with pytest.raises(
        RunError, match=r"tokenizer\.json: (not a tokenizer file|the tokenizer fails)"
    ):
        changed(tmp_path, **{section: SURE_PANICS[section]}).encode("hello")
    assert capfd.readouterr().err == ""


PRECOMPILED = '"normalizer": {"type": "Precompiled", "%srecompiled_charsmap": "//"}, "_": '
DEADLY = {
    "memory": ('"normalizer": ', PRECOMPILED % "p"),
    "hidden": ('"normalizer": ', PRECOMPILED % "\\u0070"),
    "prefix": ('"continuing_subword_prefix": null', '"continuing_subword_prefix" : "("'),
}


@pytest.mark.parametrize("name", DEADLY)
def test_what_would_end_the_process_is_refused_unread(tmp_path, name):
    path = tmp_path / "tokenizer.json"
    good = json.dumps(json.loads(like_gemma().to_str()))
    path.write_text(good.replace(*DEADLY[name]))
    assert path.read_text() != good
    tokens = TokenEntry(tokenizer="t", chat_template=None, bos_token_id=None, stop_token_ids=())
    with pytest.raises(RunError, match="would crash the process"):
        Tokenizer(path, tokens, None, 512)
    library = like_gemma()
    library.add_tokens([r"\u0070 \\\u0070"])
    library.save(str(path))
    assert Tokenizer(path, tokens, None, 512), "a backslash and a letter are no escape"


def test_a_decoder_that_panics_is_one_line(tmp_path):
    strip = {"type": "Strip", "content": "a", "start": 0, "stop": 5}
    with pytest.raises(RunError, match="the tokenizer fails"):
        changed(tmp_path, decoder=strip).decode([like_gemma().token_to_id("a")])


def test_text_does_not_grow_without_end(tmp_path):
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    for section, parts in (("normalizer", "normalizers"), ("decoder", "decoders")):
        with pytest.raises(RunError, match=f"its {section} makes more than 64 characters of one"):
            changed(tmp_path, **{section: {"type": "Sequence", parts: [double] * 40}})


def test_a_bad_tokenizer_gives_one_line(bundle, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="not a tokenizer file"):
        altered(bundle, tmp_path, "tokenizer.json", "{}")
    monkeypatch.setattr("runtime_py.bundle.tokenizer.MAX_FILE_BYTES", 1000)
    with pytest.raises(RunError, match="a tokenizer has at most"):
        changed(tmp_path)


def test_text_longer_than_the_context_can_hold_is_not_tokenized(tokenizer):
    with pytest.raises(RunError, match="longer than 32768 bytes, more than a context of 128 tok"):
        tokenizer.encode("€" * 11_000)
    with pytest.raises(RunError, match="not UTF-8 at character 2"):
        tokenizer.encode_chat([{"role": "user", "content": "a\udce9"}])
