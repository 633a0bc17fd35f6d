"""The backend on toy.pte, against what toy_executorch.py's eager modules computed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends import executorch_library
from runtime_py.backends.executorch import ExecuTorchBackend
from runtime_py.errors import RunError
from runtime_py.sampling import GREEDY, SamplingLaw
from runtime_py.speculative import Session, Stops

FOLDER = Path(__file__).parent
BUNDLE = FOLDER / "toy.pte"
REFERENCE = np.load(FOLDER / "toy_executorch_reference.npz")
TOKEN_IDS = [int(token_id) for token_id in REFERENCE["token_ids"]]
CACHE_LENGTH = len(TOKEN_IDS)
TOLERANCE = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order; values are about 1


@pytest.fixture(autouse=True, scope="module")
def library():
    try:
        executorch_library.load_library()
    except RunError as error:
        pytest.skip(str(error))


@pytest.fixture
def open_bundle():
    opened = []

    def open_one(path=BUNDLE):
        opened.append(ExecuTorchBackend(path, num_threads=1))
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


@pytest.fixture
def backend(open_bundle):
    return open_bundle()


def test_sizes_are_those_of_the_file(backend):
    assert backend.vocab_size == 48
    assert backend.hidden_size == 16
    assert backend.cache_length == CACHE_LENGTH
    assert backend.verify_widths == (1, 2, 3, 4)
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
def test_prefill_goes_on_where_it_stopped(backend, num_before):
    backend.prefill(TOKEN_IDS[:num_before], 0)
    backend.prefill(TOKEN_IDS[num_before:-1], num_before)
    logits, _ = backend.verify(TOKEN_IDS[-1:], CACHE_LENGTH - 1)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][-1], **TOLERANCE)


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


def test_draft_equals_the_eager_drafter_also_on_its_own_output(backend):
    backend.prefill(TOKEN_IDS[:10], 0)
    for _ in range(2):  # the second time after a step that must have written no row
        logits, hidden = backend.draft(TOKEN_IDS[10], REFERENCE["hidden"][9], 10)
        np.testing.assert_allclose(logits, REFERENCE["draft_logits"][9], **TOLERANCE)
        np.testing.assert_allclose(hidden, REFERENCE["draft_hidden"][9], **TOLERANCE)
        kept = hidden.copy()
        fed_back = backend.draft(3, hidden, 10)[0].copy()
        np.testing.assert_array_equal(backend.draft(3, kept, 10)[0], fed_back)


@pytest.mark.parametrize("write", ["prefill", "verify"])
def test_what_the_target_writes_changes_what_the_drafter_reads(backend, write):
    hidden = REFERENCE["hidden"][3]

    def drafted(token_ids):
        getattr(backend, write)(token_ids, 0)
        return backend.draft(7, hidden, 4)[0].copy()

    first = drafted(TOKEN_IDS[:4])
    assert np.abs(drafted([1, 2, 3, 4]) - first).max() > 1e-3
    np.testing.assert_array_equal(drafted(TOKEN_IDS[:4]), first)


def test_two_backends_share_no_kv(open_bundle):
    first, second = open_bundle(), open_bundle()
    first.prefill(TOKEN_IDS[:8], 0)
    second.prefill([1] * 8, 0)
    drafted, _ = first.draft(TOKEN_IDS[8], REFERENCE["hidden"][7], 8)
    np.testing.assert_allclose(drafted, REFERENCE["draft_logits"][7], **TOLERANCE)
    logits, _ = first.verify(TOKEN_IDS[8:9], 8)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][8], **TOLERANCE)


def test_closing_one_backend_leaves_the_other_alone(open_bundle):
    first, second = open_bundle(), open_bundle()
    first.verify(TOKEN_IDS[:1], 0)
    first.close()
    first.close()
    logits, _ = second.verify(TOKEN_IDS[:2], 0)
    np.testing.assert_allclose(logits, REFERENCE["logits"][:2], **TOLERANCE)
    with pytest.raises(RunError, match="no method fill"):
        first.verify(TOKEN_IDS[:1], 0)


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


def test_more_tokens_than_fit_one_call_are_refused(backend):
    with pytest.raises(RunError, match="this bundle takes 4"):
        backend.verify([1] * 5, 0)


def test_a_draft_without_a_committed_row_is_refused(backend):
    with pytest.raises(RunError, match="position 1 or later"):
        backend.draft(1, REFERENCE["hidden"][0], 0)


def test_torch_stays_out_of_the_process_and_nothing_is_printed():
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from runtime_py.backends.executorch import ExecuTorchBackend\n"
        f"backend = ExecuTorchBackend(Path({str(BUNDLE)!r}))\n"
        "backend.prefill([1, 2, 3], 0)\n"
        "_, hidden = backend.verify([4, 5], 3)\n"
        "backend.draft(6, hidden[1], 5)\n"
        "assert not {'torch', 'executorch'} & set(sys.modules)\n"
        "assert 'libtorch' not in Path('/proc/self/maps').read_text()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_kept_bundle_is_what_its_generator_writes(open_bundle, tmp_path):
    pytest.importorskip("executorch.exir")
    from tests.runtime_py.backends import toy_executorch

    toy_executorch.write_bundle(tmp_path / "toy.pte")
    toy_executorch.record(tmp_path / "reference.npz")
    recorded = np.load(tmp_path / "reference.npz")
    for name, values in recorded.items():
        np.testing.assert_allclose(values, REFERENCE[name], **TOLERANCE)
    made = open_bundle(tmp_path / "toy.pte")
    made.prefill(TOKEN_IDS[:10], 0)
    logits, _ = made.verify(TOKEN_IDS[10:13], 10)
    np.testing.assert_allclose(logits, recorded["logits"][10:13], **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drafter", "constants", "message"),
    [
        (True, {"format_version": 1}, "have version 1, this runtime reads 2"),
        (True, {"vocab_size": 0}, "vocab_size is 0"),
        (True, {"vocab_size": 49}, r"method finish takes .* needed .* float32\[1, 4, 49\]"),
        (True, {"max_verify_length": 3}, r"method finish takes float32\[1, 4, 16\]"),
        (True, {"max_verify_length": 9}, "max_verify_length is 9, above max_prefill_length 8"),
        (True, {"max_prefill_length": 9}, r"method fill takes int64\[1, 8\]"),
        (False, {"has_drafter": 1}, "no method draft"),
    ],
)
def test_a_file_of_another_contract_is_refused(open_bundle, tmp_path, drafter, constants, message):
    pytest.importorskip("executorch.exir")
    from tests.runtime_py.backends import toy_executorch

    toy_executorch.write_bundle(tmp_path / "toy.pte", drafter=drafter, constants=constants)
    with pytest.raises(RunError, match=message):
        open_bundle(tmp_path / "toy.pte")


@pytest.mark.slow
def test_a_bundle_without_drafter_decodes_but_does_not_draft(open_bundle, tmp_path):
    pytest.importorskip("executorch.exir")
    from tests.runtime_py.backends import toy_executorch

    toy_executorch.write_bundle(tmp_path / "toy.pte", drafter=False)
    backend = open_bundle(tmp_path / "toy.pte")
    assert not backend.has_drafter
    logits, _ = backend.verify(TOKEN_IDS[:1], 0)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][0], **TOLERANCE)
    with pytest.raises(RunError, match="no drafter in this bundle"):
        backend.draft(1, REFERENCE["hidden"][0], 1)


@pytest.mark.slow
def test_a_model_without_per_layer_embeddings_runs(open_bundle, tmp_path):
    pytest.importorskip("executorch.exir")
    from tests.runtime_py.backends import toy_executorch

    toy_executorch.write_bundle(tmp_path / "toy.pte", per_layer=False)
    one_by_one, prefilled = (open_bundle(tmp_path / "toy.pte") for _ in range(2))
    for position, token_id in enumerate(TOKEN_IDS[:12]):
        expected, _ = one_by_one.verify([token_id], position)
    assert np.abs(expected[0] - REFERENCE["logits"][11]).max() > 1e-3
    prefilled.prefill(TOKEN_IDS[:9], 0)
    logits, _ = prefilled.verify(TOKEN_IDS[9:12], 9)
    np.testing.assert_allclose(logits[2], expected[0], **TOLERANCE)
