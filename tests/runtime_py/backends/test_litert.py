"""The backend on toy.litertlm, against what toy_litert.py's eager modules computed."""

import sys
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends.litert import LiteRTBackend
from runtime_py.errors import RunError
from runtime_py.sampling import GREEDY, SamplingLaw
from runtime_py.speculative import Session, Stops

pytest.importorskip("ai_edge_litert")

FOLDER = Path(__file__).parent
BUNDLE = FOLDER / "toy.litertlm"
REFERENCE = np.load(FOLDER / "toy_reference.npz")
TOKEN_IDS = [int(token_id) for token_id in REFERENCE["token_ids"]]
CACHE_LENGTH = len(TOKEN_IDS)
TOLERANCE = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order; values are about 1


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def open_bundle(cache_dir):
    opened = []

    def open_one(path=BUNDLE):
        opened.append(LiteRTBackend(path, num_threads=1, cache_dir=cache_dir))
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


@pytest.fixture
def backend(open_bundle):
    return open_bundle()


def renamed(tmp_path, section, replacement):
    """The toy bundle with a section's name changed in its header, to one of equal length."""
    assert len(section) == len(replacement)
    path = tmp_path / "renamed.litertlm"
    path.write_bytes(BUNDLE.read_bytes().replace(section.encode(), replacement.encode(), 1))
    return path


def kv_of(backend):
    sizes = {name: int(np.prod(spec.shape)) for name, spec in backend._contract.kv.items()}
    return {name: buffer.read(sizes[name], np.float32) for name, buffer in backend._kv.items()}


def test_sizes_are_those_of_the_graphs(backend):
    assert backend.vocab_size == 48
    assert backend.hidden_size == 16
    assert backend.cache_length == CACHE_LENGTH
    assert backend.verify_widths == (1, 2, 4)
    assert backend.has_drafter


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4])
def test_verify_equals_the_eager_modules_up_to_the_last_row(backend, num_tokens):
    for position in range(0, CACHE_LENGTH, num_tokens):
        token_ids = TOKEN_IDS[position : position + num_tokens]
        logits, hidden = backend.verify(token_ids, position)
        rows = slice(position, position + len(token_ids))
        np.testing.assert_allclose(logits, REFERENCE["logits"][rows], **TOLERANCE)
        np.testing.assert_allclose(hidden, REFERENCE["hidden"][rows], **TOLERANCE)


@pytest.mark.parametrize("num_tokens", range(1, CACHE_LENGTH))
def test_prefill_of_any_length_equals_one_by_one(backend, num_tokens):
    backend.prefill(TOKEN_IDS[:num_tokens], 0)
    logits, _ = backend.verify([TOKEN_IDS[num_tokens]], num_tokens)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][num_tokens], **TOLERANCE)


@pytest.mark.parametrize("num_before", range(1, CACHE_LENGTH - 1))
def test_prefill_up_to_the_last_row_moves_no_row(backend, num_before):
    """A graph that is too wide for the room left would be shifted down over committed rows."""
    backend.prefill(TOKEN_IDS[:num_before], 0)
    backend.prefill(TOKEN_IDS[num_before:-1], num_before)
    logits, _ = backend.verify(TOKEN_IDS[-1:], CACHE_LENGTH - 1)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][-1], **TOLERANCE)


def test_prefill_takes_the_widest_graph_that_is_filled_and_pads_the_last(backend):
    def widths(num_tokens, position=0):
        return [step.width for step, _ in backend._prefill_plan(num_tokens, position)]

    assert [widths(num_tokens) for num_tokens in (1, 4, 5, 8, 13)] == [
        [4],
        [4],
        [4, 4],
        [8],
        [8, 4, 4],
    ]
    assert widths(3, CACHE_LENGTH - 3) == [2, 1]
    assert widths(7, CACHE_LENGTH - 7) == [4, 2, 1]
    backend._prefill = {}
    assert [widths(num_tokens) for num_tokens in (1, 2, 3, 6, 7)] == [
        [1],
        [2],
        [4],
        [4, 2],
        [4, 4],
    ]


def test_stale_rows_are_neither_seen_nor_kept(backend):
    backend.prefill(TOKEN_IDS[:6], 0)
    backend.verify([47, 46, 45, 44], 6)
    for position in range(6, 10):
        drafted, _ = backend.draft(TOKEN_IDS[position], REFERENCE["hidden"][position - 1], position)
        expected = REFERENCE["draft_logits"][position - 1]
        np.testing.assert_allclose(drafted, expected, **TOLERANCE)
        logits, _ = backend.verify([TOKEN_IDS[position]], position)
        np.testing.assert_allclose(logits[0], REFERENCE["logits"][position], **TOLERANCE)


def test_a_position_can_go_back(backend):
    backend.prefill(TOKEN_IDS[:20], 0)
    logits, _ = backend.verify(TOKEN_IDS[5:8], 5)
    np.testing.assert_allclose(logits, REFERENCE["logits"][5:8], **TOLERANCE)


def test_draft_equals_the_eager_drafter_and_writes_no_kv(backend):
    backend.prefill(TOKEN_IDS[:10], 0)
    before = kv_of(backend)
    logits, hidden = backend.draft(TOKEN_IDS[10], REFERENCE["hidden"][9], 10)
    np.testing.assert_allclose(logits, REFERENCE["draft_logits"][9], **TOLERANCE)
    np.testing.assert_allclose(hidden, REFERENCE["draft_hidden"][9], **TOLERANCE)
    backend.draft(3, hidden, 10)  # its own output fed back, as in the next draft step
    for name, rows in kv_of(backend).items():
        np.testing.assert_array_equal(rows, before[name])


def test_kv_is_one_buffer_for_target_and_drafter(backend):
    """What the target writes is in the very buffers that the drafter is bound to."""
    drafter = backend._drafter._signature
    shared = [buffer for buffer in drafter._input_buffers if buffer in backend._kv.values()]
    assert len(shared) == len(backend._kv) == 4
    for step in (*backend._prefill.values(), *backend._verify.values()):
        signature = step._signature
        assert set(backend._kv.values()) <= set(signature._input_buffers)
        assert set(backend._kv.values()) <= set(signature._output_buffers)
    before = kv_of(backend)
    assert not any(rows.any() for rows in before.values())
    backend.verify(TOKEN_IDS[:1], 0)
    for name, rows in kv_of(backend).items():
        changed = rows.reshape(backend._contract.kv[name].shape) != 0
        axis = 2 if name.startswith("kv_cache_k") else 3
        assert changed.any(axis=tuple({0, 1, 2, 3} - {axis})).tolist() == [True] + [False] * 23


def test_two_backends_share_no_kv(open_bundle):
    first, second = open_bundle(), open_bundle()
    first.prefill(TOKEN_IDS[:8], 0)
    second.prefill([1] * 8, 0)
    logits, _ = first.verify(TOKEN_IDS[8:9], 8)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][8], **TOLERANCE)


def test_closing_one_backend_leaves_the_other_alone(open_bundle):
    first, second = open_bundle(), open_bundle()
    first.verify(TOKEN_IDS[:1], 0)
    first.close()
    first.close()
    logits, _ = second.verify(TOKEN_IDS[:2], 0)
    np.testing.assert_allclose(logits, REFERENCE["logits"][:2], **TOLERANCE)


@pytest.mark.parametrize("draft_length", [1, 2, 3])
@pytest.mark.parametrize("law", [GREEDY, SamplingLaw(temperature=1.0, seed=5)])
def test_speculative_tokens_equal_plain_decode(backend, draft_length, law):
    stops = Stops(max_new_tokens=CACHE_LENGTH)  # more than fits: up to the last row

    def tokens(num_drafts):
        session = Session(backend, CACHE_LENGTH)
        steps = session.generate(TOKEN_IDS[:5], law, stops, num_drafts)
        return [token_id for step in steps for token_id in step.token_ids]

    plain = tokens(0)
    assert len(plain) >= CACHE_LENGTH - 5
    assert tokens(draft_length) == plain


@pytest.mark.parametrize(
    ("token_ids", "position"), [([1], CACHE_LENGTH), ([1, 2], CACHE_LENGTH - 1), ([], 0), ([1], -1)]
)
def test_rows_outside_the_cache_are_refused(backend, token_ids, position):
    for call in (backend.prefill, backend.verify):
        with pytest.raises(RunError, match="rows 0 to 23"):
            call(token_ids, position)


def test_an_unknown_token_is_refused(backend):
    for token_id in (-1, 48):
        with pytest.raises(RunError, match="this bundle has 0 to 47"):
            backend.verify([token_id], 0)


def test_more_tokens_than_the_widest_graph_are_refused(backend):
    with pytest.raises(RunError, match="the widest graph takes 4"):
        backend.verify([1] * 5, 0)


def test_a_bundle_without_drafter_decodes_but_does_not_draft(open_bundle, tmp_path):
    backend = open_bundle(renamed(tmp_path, "tf_lite_mtp_drafter", "tf_lite_mtp_unknown"))
    assert not backend.has_drafter
    logits, _ = backend.verify(TOKEN_IDS[:1], 0)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][0], **TOLERANCE)
    with pytest.raises(RunError, match="no drafter in this bundle"):
        backend.draft(1, REFERENCE["hidden"][0], 1)


@pytest.mark.parametrize(
    "section", ["tf_lite_prefill_decode", "tf_lite_embedder", "tf_lite_per_layer_embedder"]
)
def test_a_missing_section_is_named(open_bundle, tmp_path, section):
    with pytest.raises(RunError, match=f"no section {section}"):
        open_bundle(renamed(tmp_path, section, section[:-1] + "X"))


def test_a_damaged_model_is_one_line(open_bundle, tmp_path):
    content = bytearray(BUNDLE.read_bytes())
    start = content.index(b"TFL3") - 4
    for first, replacement in ((start, b"\xff\xff\xff\x7f"), (start + 4, b"ELF!")):
        damaged = content.copy()
        damaged[first : first + 4] = replacement
        path = tmp_path / "damaged.litertlm"
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="does not load") as raised:
            open_bundle(path)
        assert "\n" not in str(raised.value)


def test_without_litert_the_next_step_is_named(open_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(RunError, match=r"pip install 'gemma-export\[litert\]'"):
        open_bundle()


def test_the_second_load_finds_the_repacked_weights(open_bundle, cache_dir):
    open_bundle()
    names = {path.name: path.stat().st_mtime_ns for path in cache_dir.iterdir()}
    assert all(name.endswith(".xnnpack") for name in names)
    again = open_bundle()
    assert {path.name: path.stat().st_mtime_ns for path in cache_dir.iterdir()} == names
    logits, _ = again.verify(TOKEN_IDS[:1], 0)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][0], **TOLERANCE)


def test_loading_says_nothing(open_bundle, capfd):
    open_bundle().verify(TOKEN_IDS[:1], 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_kept_bundle_is_what_its_generator_writes(open_bundle, tmp_path):
    pytest.importorskip("litert_torch")
    from tests.runtime_py.backends import toy_litert

    toy_litert.write_bundle(tmp_path / "toy.litertlm")
    toy_litert.record(tmp_path / "reference.npz")
    recorded = np.load(tmp_path / "reference.npz")
    for name, values in recorded.items():
        np.testing.assert_allclose(values, REFERENCE[name], **TOLERANCE)
    made = open_bundle(tmp_path / "toy.litertlm")
    made.prefill(TOKEN_IDS[:10], 0)
    logits, _ = made.verify(TOKEN_IDS[10:13], 10)
    np.testing.assert_allclose(logits, recorded["logits"][10:13], **TOLERANCE)


@pytest.mark.slow
def test_a_model_without_per_layer_embeddings_runs(open_bundle, tmp_path):
    pytest.importorskip("litert_torch")
    from tests.runtime_py.backends import toy_litert

    toy_litert.write_bundle(tmp_path / "toy.litertlm", per_layer=False)
    one_by_one, prefilled = (open_bundle(tmp_path / "toy.litertlm") for _ in range(2))
    for position, token_id in enumerate(TOKEN_IDS[:12]):
        expected, _ = one_by_one.verify([token_id], position)
    prefilled.prefill(TOKEN_IDS[:11], 0)
    logits, _ = prefilled.verify([TOKEN_IDS[11]], 11)
    np.testing.assert_allclose(logits, expected, **TOLERANCE)
