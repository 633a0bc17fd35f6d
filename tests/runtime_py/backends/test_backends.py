"""The laws of every backend, on its toy bundle, against what the toy's eager modules computed."""

import re
import subprocess
import sys

import numpy as np
import pytest

from runtime_py.backends.installed import install_command
from runtime_py.decoding.sampling import GREEDY, SamplingParams
from runtime_py.decoding.session import Session, Stops
from runtime_py.errors import RunError
from tests.runtime_py.backends.toys import (
    CACHE_LENGTH,
    HIDDEN_SIZE,
    INT8_TOYS,
    TOYS,
    VOCAB_SIZE,
)
from tests.runtime_py.scripted_backend import Adversary

TOLERANCE = 2e-5  # float32 sums in another order; of the largest value, if that is over 1


def assert_close(found, expected):
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)


ALL_TOYS = TOYS | {f"{name}-int8-rows": toy for name, toy in INT8_TOYS.items()}


@pytest.fixture(params=sorted(ALL_TOYS), scope="module")
def toy(request):
    toy = ALL_TOYS[request.param]
    try:
        toy.open().close()
    except RunError as error:
        if str(toy.bundle) in str(error):
            raise
        pytest.skip(str(error))  # the runtime is not installed, or not for this machine
    return toy


@pytest.fixture(scope="module")
def expected(toy):
    return toy.expected()


@pytest.fixture(scope="module")
def ids(expected):
    assert len(expected["token_ids"]) == CACHE_LENGTH
    return [int(token_id) for token_id in expected["token_ids"]]


@pytest.fixture
def open_bundle(toy):
    opened = []

    def open_one(path=None):
        opened.append(toy.open(path))
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


@pytest.fixture
def backend(open_bundle):
    return open_bundle()


def test_sizes_are_those_of_the_file(backend, toy):
    assert backend.vocab_size == VOCAB_SIZE
    assert backend.hidden_size == HIDDEN_SIZE
    assert backend.cache_length == CACHE_LENGTH
    assert backend.verify_widths == toy.verify_widths
    assert backend.has_drafter


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4])
def test_verify_equals_the_eager_modules_up_to_the_last_row(backend, ids, expected, num_tokens):
    for position in range(0, CACHE_LENGTH, num_tokens):
        token_ids = ids[position : position + num_tokens]
        logits, hidden = backend.verify(token_ids, position)
        rows = slice(position, position + len(token_ids))
        assert_close(logits, expected["logits"][rows])
        assert_close(hidden, expected["hidden"][rows])


def test_the_width_may_change_from_call_to_call(backend, ids, expected):
    position = 0
    for num_tokens in (4, 1, 3, 2, 4, 4, 1, 2, 3):
        logits, _ = backend.verify(ids[position : position + num_tokens], position)
        assert_close(logits, expected["logits"][position : position + num_tokens])
        position += num_tokens
    assert position == CACHE_LENGTH


@pytest.mark.parametrize("num_tokens", range(1, CACHE_LENGTH))
def test_prefill_of_any_length_equals_one_by_one(backend, ids, expected, num_tokens):
    backend.prefill(ids[:num_tokens], 0)
    logits, _ = backend.verify([ids[num_tokens]], num_tokens)
    assert_close(logits[0], expected["logits"][num_tokens])


@pytest.mark.parametrize("num_before", range(1, CACHE_LENGTH - 1))
def test_prefill_goes_on_where_it_stopped_up_to_the_last_row(backend, ids, expected, num_before):
    backend.prefill(ids[:num_before], 0)
    backend.prefill(ids[num_before:-1], num_before)
    logits, _ = backend.verify(ids[-1:], CACHE_LENGTH - 1)
    assert_close(logits[0], expected["logits"][-1])


def test_stale_rows_are_neither_seen_nor_kept(backend, ids, expected):
    backend.prefill(ids[:6], 0)
    backend.verify([47, 46, 45, 44], 6)
    for position in range(6, 10):
        drafted, _ = backend.draft(ids[position], expected["hidden"][position - 1], position)
        assert_close(drafted, expected["draft_logits"][position - 1])
        logits, _ = backend.verify([ids[position]], position)
        assert_close(logits[0], expected["logits"][position])


def test_a_position_can_go_back(backend, ids, expected):
    backend.prefill(ids[:20], 0)
    logits, _ = backend.verify(ids[5:8], 5)
    assert_close(logits, expected["logits"][5:8])


def test_draft_equals_the_eager_drafter_at_every_position(backend, ids, expected):
    backend.prefill(ids[:-1], 0)
    for position in range(1, CACHE_LENGTH):
        logits, hidden = backend.draft(ids[position], expected["hidden"][position - 1], position)
        assert_close(logits, expected["draft_logits"][position - 1])
        assert_close(hidden, expected["draft_hidden"][position - 1])


def test_draft_steps_change_nothing_that_a_later_call_reads(backend, ids, expected):
    backend.prefill(ids[:10], 0)
    for _ in range(2):
        logits, hidden = backend.draft(ids[10], expected["hidden"][9], 10)
        assert_close(logits, expected["draft_logits"][9])
        assert_close(hidden, expected["draft_hidden"][9])
        kept = hidden.copy()
        fed_back = backend.draft(3, hidden, 10)[0].copy()  # where its own output lies
        np.testing.assert_array_equal(backend.draft(3, kept, 10)[0], fed_back)
    logits, _ = backend.verify(ids[10:13], 10)
    assert_close(logits, expected["logits"][10:13])


@pytest.mark.parametrize("write", ["prefill", "verify"])
def test_what_the_target_writes_changes_what_the_drafter_reads(backend, ids, expected, write):
    def drafted(token_ids):
        getattr(backend, write)(token_ids, 0)
        return backend.draft(7, expected["hidden"][3], 4)[0].copy()

    first = drafted(ids[:4])
    assert np.abs(drafted([1, 2, 3, 4]) - first).max() > 1e-3
    np.testing.assert_array_equal(drafted(ids[:4]), first)


def test_two_backends_share_no_kv(open_bundle, ids, expected):
    first, second = open_bundle(), open_bundle()
    first.prefill(ids[:8], 0)
    second.prefill([1] * 8, 0)
    drafted, _ = first.draft(ids[8], expected["hidden"][7], 8)
    assert_close(drafted, expected["draft_logits"][7])
    logits, _ = first.verify(ids[8:9], 8)
    assert_close(logits[0], expected["logits"][8])


def test_closing_one_backend_leaves_the_other_alone(open_bundle, ids, expected):
    first, second = open_bundle(), open_bundle()
    first.verify(ids[:1], 0)
    first.close()
    first.close()
    logits, _ = second.verify(ids[:2], 0)
    assert_close(logits, expected["logits"][:2])


@pytest.mark.parametrize("draft_length", [1, 2, 3, "any"])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.0, seed=5)])
def test_speculative_tokens_equal_plain_decode(backend, ids, draft_length, sampling):
    stops = Stops(max_new_tokens=CACHE_LENGTH)  # more than fits: up to the last row

    def tokens(num_drafts):
        session = Session(backend, CACHE_LENGTH)
        steps = session.generate(ids[:5], sampling, stops, num_drafts)
        return [token_id for step in steps for token_id in step.token_ids]

    plain = tokens(0)
    assert len(plain) >= CACHE_LENGTH - 5
    assert tokens(Adversary.random(0) if draft_length == "any" else draft_length) == plain


@pytest.mark.parametrize(
    ("token_ids", "position"), [([1], CACHE_LENGTH), ([1, 2], CACHE_LENGTH - 1), ([], 0), ([1], -1)]
)
def test_rows_outside_the_cache_are_refused(backend, token_ids, position):
    for call in (backend.prefill, backend.verify):
        with pytest.raises(RunError, match="rows 0 to 23"):
            call(token_ids, position)


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE])
def test_an_unknown_token_is_refused(backend, expected, token_id):
    hidden = expected["hidden"][0]
    for call in (backend.prefill, backend.verify):
        with pytest.raises(RunError, match="this bundle has 0 to 47"):
            call([token_id], 0)
    with pytest.raises(RunError, match="this bundle has 0 to 47"):
        backend.draft(token_id, hidden, 1)


def test_more_tokens_than_the_widest_graph_are_refused(backend):
    with pytest.raises(RunError, match=r"5 tokens to verify, .* takes 4;"):
        backend.verify([1] * 5, 0)


def test_a_draft_without_a_committed_row_is_refused(backend, expected):
    with pytest.raises(RunError, match="position 1 or later"):
        backend.draft(1, expected["hidden"][0], 0)


def test_a_draft_past_the_last_row_is_refused(backend, expected):
    with pytest.raises(RunError, match="rows 0 to 23"):
        backend.draft(1, expected["hidden"][0], CACHE_LENGTH)


def test_a_bundle_without_drafter_decodes_but_does_not_draft(
    open_bundle, toy, ids, expected, tmp_path
):
    for name, content in toy.without_drafter(toy.bundle).items():
        (tmp_path / name).write_bytes(content)
    backend = open_bundle(tmp_path / toy.bundle.name)
    assert not backend.has_drafter
    logits, _ = backend.verify(ids[:3], 0)
    assert_close(logits, expected["logits"][:3])
    with pytest.raises(RunError, match="no drafter in this bundle"):
        backend.draft(1, expected["hidden"][0], 1)


def test_a_file_cut_anywhere_is_one_line(open_bundle, toy, tmp_path):
    content = toy.bundle.read_bytes()
    path = tmp_path / toy.bundle.name
    for length in (0, 1, 16, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(RunError) as raised:
            open_bundle(path)
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"PK\x03\x04" * 100, bytes(4096)], ids=["zip", "zeros"])
def test_another_kind_of_file_is_one_line(open_bundle, toy, tmp_path, content):
    path = tmp_path / toy.bundle.name
    path.write_bytes(content)
    with pytest.raises(RunError, match=str(path)) as raised:
        open_bundle(path)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_line(open_bundle, toy, tmp_path):
    path = tmp_path / toy.bundle.name
    with pytest.raises(RunError, match=str(path)) as raised:
        open_bundle(path)
    assert "\n" not in str(raised.value)


def test_without_the_runtime_the_next_step_is_named(open_bundle, toy, monkeypatch):
    toy.hide_runtime(monkeypatch)
    with pytest.raises(RunError, match=re.escape(install_command(toy.extra))):
        open_bundle()


def test_loading_and_running_say_nothing(open_bundle, ids, expected, capfd):
    backend = open_bundle()
    backend.prefill(ids[:5], 0)
    backend.verify(ids[5:7], 5)
    backend.draft(ids[7], expected["hidden"][6], 7)
    assert capfd.readouterr() == ("", "")


def test_torch_stays_out_of_the_process(toy):
    name = toy.backend.__name__
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        f"from {toy.backend.__module__} import {name}\n"
        f"backend = {name}(Path({str(toy.bundle)!r}))\n"
        "backend.prefill([1, 2, 3], 0)\n"
        "_, hidden = backend.verify([4, 5], 3)\n"
        "backend.draft(6, hidden[1].copy(), 5)\n"
        "assert not {'torch', 'executorch', 'transformers'} & set(sys.modules)\n"
        "assert 'libtorch' not in Path('/proc/self/maps').read_text()\n"
        "os._exit(0)\n"  # LiteRT reports its own end
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
