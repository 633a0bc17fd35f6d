"""What only the LiteRT backend has; test_backends.py holds the laws of every backend."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends import litert_kv
from runtime_py.backends.litert import LiteRTBackend
from runtime_py.backends.litert_kv import host_address
from runtime_py.errors import RunError

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


def test_the_address_of_a_kv_buffer_is_where_its_numbers_are(backend):
    backend.prefill(TOKEN_IDS[:10], 0)
    for name, rows in kv_of(backend).items():
        address = host_address(backend._kv[name], rows.nbytes)
        found = np.ctypeslib.as_array((ctypes.c_float * rows.size).from_address(address))
        assert rows.any()
        np.testing.assert_array_equal(found, rows)
        assert host_address(backend._kv[name], rows.nbytes + 4096) is None


def test_kv_whose_place_is_not_known_is_zeros_and_works_as_ever(open_bundle, monkeypatch):
    monkeypatch.setattr(litert_kv, "host_address", lambda *_: None)
    backend = open_bundle()
    assert not any(rows.any() for rows in kv_of(backend).values())
    logits, _ = backend.verify(TOKEN_IDS[:2], 0)
    np.testing.assert_allclose(logits, REFERENCE["logits"][:2], **TOLERANCE)


def test_draft_writes_no_kv(backend):
    backend.prefill(TOKEN_IDS[:10], 0)
    before = kv_of(backend)
    _, hidden = backend.draft(TOKEN_IDS[10], REFERENCE["hidden"][9], 10)
    backend.draft(3, hidden, 10)
    for name, rows in kv_of(backend).items():
        np.testing.assert_array_equal(rows, before[name])


def test_kv_is_one_buffer_for_target_and_drafter(backend):
    """What the target writes is in the very buffers that the drafter is bound to."""
    drafter = backend._drafter._signature
    shared = [buffer for buffer in drafter._input_buffers if buffer in backend._kv.values()]
    assert len(shared) == len(backend._kv) == 4
    for step in (*backend._prefill.values(), *backend._verify.values()):
        signature = step._bind()
        assert set(backend._kv.values()) <= set(signature._input_buffers)
        assert set(backend._kv.values()) <= set(signature._output_buffers)
    before = kv_of(backend)
    assert not any(rows.any() for rows in before.values())
    backend.verify(TOKEN_IDS[:1], 0)
    for name, rows in kv_of(backend).items():
        changed = rows.reshape(backend._contract.kv[name].shape) != 0
        axis = 2 if name.startswith("kv_cache_k") else 3
        assert changed.any(axis=tuple({0, 1, 2, 3} - {axis})).tolist() == [True] + [False] * 23


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


def test_the_second_load_finds_the_repacked_weights(open_bundle, cache_dir):
    open_bundle()
    names = {path.name: path.stat().st_mtime_ns for path in cache_dir.iterdir()}
    assert all(name.endswith(".xnnpack") for name in names)
    again = open_bundle()
    assert {path.name: path.stat().st_mtime_ns for path in cache_dir.iterdir()} == names
    logits, _ = again.verify(TOKEN_IDS[:1], 0)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][0], **TOLERANCE)


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
