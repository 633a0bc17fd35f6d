"""The Python API on a scripted bundle: what a program asks, gets, stops and is refused."""

import threading
import time

import numpy as np
import pytest

import runtime_py
from runtime_py import RunError, SamplingParams
from runtime_py.backends.load import BACKENDS
from tests.runtime_py.bundles import VOCAB_SIZE, write_fake_bundle
from tests.runtime_py.scripted_backend import ScriptedBackend

PROMPT_IDS = [2, 5, 7]
NUM_TOKENS = 20


class Scripted(ScriptedBackend):
    """Knows whether it was closed; drafts are measured before anything is committed."""

    closed = False

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_fake_bundle(tmp_path_factory.mktemp("api") / "bundle")


@pytest.fixture
def backend(monkeypatch):
    scripted = Scripted(vocab_size=VOCAB_SIZE)
    monkeypatch.setitem(BACKENDS, "litert", lambda *_: scripted)
    return scripted


@pytest.fixture
def model(bundle, backend):
    with runtime_py.load(bundle, draft_length=3) as model:
        yield model
    assert backend.closed


def test_a_result_has_text_tokens_a_reason_and_figures(model):
    result = model.generate("Write a haiku", max_new_tokens=NUM_TOKENS)
    assert result.finish_reason == "length"
    assert len(result.token_ids) == NUM_TOKENS
    assert result.text == model.decode(result.token_ids)
    stats = result.stats
    assert stats.num_prompt_tokens == model.count_tokens("Write a haiku")
    assert 1 < stats.num_target_calls < NUM_TOKENS
    assert stats.draft_length == 3
    assert 0 < stats.accepted_per_round <= 3
    assert stats.tokens_per_s > 0
    assert stats.prefill_s > 0
    assert stats.decode_s > 0
    assert (model.name, model.runtime, model.context_length) == ("scripted", "litert", 128)
    assert model.has_drafter


def test_a_stream_is_the_same_in_pieces(model):
    whole = model.generate(PROMPT_IDS, max_new_tokens=NUM_TOKENS, temperature=1.0, seed=7)
    stream = model.stream(PROMPT_IDS, max_new_tokens=NUM_TOKENS, temperature=1.0, seed=7)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == whole.text == stream.result.text
    assert [token for piece in pieces for token in piece.token_ids] == list(whole.token_ids)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == whole.finish_reason == "length"


def test_a_prompt_is_text_messages_or_tokens(model):
    """Text is the user's message; raw text is read as it is."""
    messages = [{"role": "user", "content": "hi"}]
    texts = {
        model.generate(prompt, max_new_tokens=9).token_ids
        for prompt in ("hi", messages, tuple(messages), model.encode("[user]hi[/][model]"))
    }
    assert len(texts) == 1
    raw = model.generate("[user]hi[/][model]", max_new_tokens=9, raw=True).token_ids
    assert {raw} == texts
    assert model.count_tokens("hi", raw=True) == len(model.encode("hi"))
    assert model.decode(model.encode("hi")) == "hi"


def test_token_ids_may_be_numpys(model):
    asked = np.array(PROMPT_IDS)
    found = model.generate(asked, max_new_tokens=9).token_ids
    assert found == model.generate(PROMPT_IDS, max_new_tokens=9).token_ids


def test_keywords_set_what_sampling_params_leave(model):
    warm = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, seed=1)

    def tokens(*sampling, **keywords):
        return model.generate(PROMPT_IDS, *sampling, max_new_tokens=9, **keywords).token_ids

    assert tokens(warm) == tokens(temperature=1.5, top_k=0, top_p=1.0, seed=1)
    assert tokens(warm, seed=2) == tokens(temperature=1.5, top_k=0, top_p=1.0, seed=2)
    assert tokens(warm, temperature=0) == tokens() == tokens(SamplingParams())
    assert len({tokens(warm), tokens(warm, seed=2), tokens()}) == 3


def test_a_growing_conversation_is_read_from_where_it_grew(model, backend):
    messages = [{"role": "user", "content": "one"}]
    answer = model.generate(messages, max_new_tokens=5)
    before, history = backend.num_prefilled, answer.stats.num_prompt_tokens
    messages += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "two"}]
    result = model.generate(messages, max_new_tokens=5)
    assert backend.num_prefilled - before <= result.stats.num_prompt_tokens - history + 8
    fresh = model.generate("else", max_new_tokens=5) and model.generate(messages, max_new_tokens=5)
    assert result.token_ids == fresh.token_ids


def test_a_stream_that_is_left_early_leaves_the_model_usable(model):
    whole = model.generate(PROMPT_IDS, max_new_tokens=NUM_TOKENS)
    for piece in model.stream(PROMPT_IDS, max_new_tokens=NUM_TOKENS):
        assert piece.token_ids == whole.token_ids[: len(piece.token_ids)]
        break
    left = model.stream(PROMPT_IDS, max_new_tokens=NUM_TOKENS)
    first = next(left)
    left.close()
    assert list(left) == []
    assert left.result.token_ids == first.token_ids
    assert left.result.finish_reason == "stopped"
    assert model.generate(PROMPT_IDS, max_new_tokens=NUM_TOKENS).token_ids == whole.token_ids


def test_another_thread_stops_a_generation_between_rounds(model):
    whole = model.generate(PROMPT_IDS, max_new_tokens=60).token_ids
    stop, third_round = threading.Event(), threading.Event()
    num_asked = 0

    def should_stop():
        nonlocal num_asked
        num_asked += 1
        if num_asked == 3:
            third_round.set()
            assert stop.wait(30)
        return stop.is_set()

    def stop_it():
        assert third_round.wait(30)
        stop.set()

    other = threading.Thread(target=stop_it)
    other.start()
    result = model.generate(PROMPT_IDS, max_new_tokens=60, should_stop=should_stop)
    other.join()
    assert result.finish_reason == "stopped"
    assert result.stats.num_target_calls == 2
    assert result.token_ids == whole[: len(result.token_ids)]
    assert model.generate(PROMPT_IDS, max_new_tokens=60).token_ids == whole


def test_who_stops_it_when_it_has_ended_changes_nothing(model):
    tokens = []
    stream = model.stream(PROMPT_IDS, max_new_tokens=9, should_stop=lambda: len(tokens) == 9)
    for piece in stream:
        tokens += piece.token_ids
    assert (len(tokens), stream.result.finish_reason) == (9, "length")


def test_one_that_is_stopped_before_it_begins_runs_nothing(model, backend):
    stream = model.stream(PROMPT_IDS, should_stop=lambda: True)
    assert [piece.finish_reason for piece in stream] == ["stopped"]
    assert stream.result.token_ids == ()
    assert backend.num_calls == {"prefill": 0, "verify": 0, "draft": 0}


def test_calls_of_two_threads_never_meet_in_the_backend(model, backend, monkeypatch):
    inside = threading.Lock()
    verify = backend.verify

    def alone(*arguments):
        assert inside.acquire(blocking=False), "two calls at once"
        try:
            time.sleep(0.001)  # lets the other threads run
            return verify(*arguments)
        finally:
            inside.release()

    monkeypatch.setattr(backend, "verify", alone)
    ends = []

    def generate():
        try:
            ends.append(model.generate(PROMPT_IDS, max_new_tokens=40).finish_reason)
        except RunError as error:
            ends.append(str(error)[:27])

    threads = [threading.Thread(target=generate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "length" in ends
    assert set(ends) <= {"length", "this answer cannot go on: a"}


def test_a_closed_model_says_so(bundle, backend):
    model = runtime_py.load(bundle, draft_length=0)
    stream = model.stream(PROMPT_IDS)
    next(stream)
    model.close()
    model.close()
    assert backend.closed
    with pytest.raises(RunError, match="this model was closed"):
        next(stream)
    with pytest.raises(RunError, match="this model was closed"):
        model.generate(PROMPT_IDS)


@pytest.mark.parametrize(
    ("prompt", "keywords", "said"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        ([1, VOCAB_SIZE], {}, "a token id outside 0 .. 299"),
        ([2] * 128, {}, "the context holds 128"),
        (["hi"], {}, "the prompt has 'hi' in it"),
        ({"role": "user", "content": "hi"}, {}, "the prompt has 'role' in it"),
        ([{"role": "user"}], {}, "message 0 has None as content"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], {}, "message 1 has None as role"),
        ([{"role": "user", "content": "a"}], {"raw": True}, "raw continues text"),
        ("hi", {"max_new_tokens": 0}, "max-new-tokens is 0"),
        ("hi", {"temperature": -1.0}, "temperature is -1.0"),
        ("hi", {"top_p": 0}, "top-p is 0"),
    ],
)
def test_what_cannot_be_generated_is_refused_when_asked(model, prompt, keywords, said):
    with pytest.raises(RunError, match=said):
        model.stream(prompt, **keywords)


def test_an_unknown_keyword_is_a_type_error(model):
    with pytest.raises(TypeError, match="temprature"):
        model.generate("hi", temprature=1.0)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"draft_length": 64}, "draft length is 64; this bundle allows auto or 0 .. 63"),
        ({"draft_length": -1}, "draft length is -1"),
        ({"draft_length": "fast"}, "draft length is fast"),
        ({"threads": 0}, r"threads is 0; it must be 1 \.\. 256"),
        ({"runtime": "tpu"}, "made for litert; cannot be run with tpu"),
    ],
)
def test_options_out_of_range_are_refused_before_the_graphs_load(
    bundle, monkeypatch, keywords, said
):
    monkeypatch.setitem(BACKENDS, "litert", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RunError, match=said):
        runtime_py.load(bundle, **keywords)


def test_a_draft_length_that_no_graph_verifies_closes_the_graphs(bundle, backend):
    with pytest.raises(RunError, match=r"draft length is 9; this bundle allows 0 \.\. 7"):
        runtime_py.load(str(bundle), draft_length=9)
    assert backend.closed


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(RunError, match="no such bundle folder"):
        runtime_py.load(tmp_path / "nowhere")
