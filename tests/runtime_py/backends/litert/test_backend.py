"""What only the LiteRT backend has; test_backends.py holds the laws of every backend."""

import logging
import os
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.backends.litert import backend as litert
from runtime_py.backends.litert import model as litert_model
from runtime_py.backends.litert import weight_cache as litert_weight_cache
from runtime_py.backends.litert.backend import LiteRTBackend
from runtime_py.errors import RunError

pytest.importorskip("ai_edge_litert")

FOLDER = Path(__file__).parents[1]
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
    return {name: rows.copy() for name, rows in backend._kv.items()}


def bound_addresses(signature):
    """Where the arrays lie that LiteRT was given."""
    by_buffer = {buffer.value: place for place, buffer in signature._call._buffers.items()}
    inputs, outputs = signature._call._groups
    return {by_buffer[i] for i in inputs}, {by_buffer[i] for i in outputs}


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


@given(st.integers(1, 4), st.lists(st.integers(0, CACHE_LENGTH - 4), min_size=1))
def test_a_mask_shows_what_it_is_told_to_and_nothing_else(num_rows, shown):
    array = np.zeros((1, 1, num_rows, CACHE_LENGTH), np.float32)
    mask = litert._CausalMask(array)
    for num_visible in shown:
        mask.show(num_visible)
        for index, row in enumerate(array[0, 0]):
            assert not row[: num_visible + index].any()
            assert (row[num_visible + index :] < -1e38).all()


def test_a_row_that_is_kept_is_the_tables(backend, monkeypatch):
    monkeypatch.setattr(litert._Lookup, "_NUM_KEPT", 2)
    lookup = backend._drafter._embedder
    rows = {}
    for token_id in range(4):
        lookup._token_id[0] = token_id
        lookup._signature.run()
        rows[token_id] = list(lookup._row)
    run, runs = lookup._signature.run, []
    counted = SimpleNamespace(run=lambda: runs.append(run()))
    monkeypatch.setattr(lookup, "_signature", counted)
    for token_id in (0, 1, 0, 2, 0, 0, 3, 3, 1):
        found = memoryview(bytearray(4 * len(rows[0]))).cast("f")
        lookup.into(token_id, found)
        assert list(found) == rows[token_id]
    assert len(runs) == 6
    assert len(lookup._kept) == 2


def test_draft_writes_no_kv(backend):
    backend.prefill(TOKEN_IDS[:10], 0)
    before = kv_of(backend)
    _, hidden = backend.draft(TOKEN_IDS[10], REFERENCE["hidden"][9], 10)
    backend.draft(3, hidden, 10)
    for name, rows in kv_of(backend).items():
        np.testing.assert_array_equal(rows, before[name])


def test_kv_is_one_buffer_for_target_and_drafter(backend):
    """What the target writes is in the very buffers that the drafter is bound to."""
    kv = {rows.ctypes.data for rows in backend._kv.values()}
    assert len(kv) == 4
    inputs, _ = bound_addresses(backend._drafter._signature)
    assert kv <= inputs
    for step in (*backend._prefill.values(), *backend._verify.values()):
        inputs, outputs = bound_addresses(step._bind())
        assert kv <= inputs
        assert kv <= outputs
    before = kv_of(backend)
    assert not any(rows.any() for rows in before.values())
    backend.verify(TOKEN_IDS[:1], 0)
    for name, rows in kv_of(backend).items():
        changed = rows != 0
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
    assert {Path(name).suffix for name in names} == {".xnnpack", ".sum"}
    again = open_bundle()
    assert {path.name: path.stat().st_mtime_ns for path in cache_dir.iterdir()} == names
    logits, _ = again.verify(TOKEN_IDS[:1], 0)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][0], **TOLERANCE)


@pytest.mark.parametrize("damage", ["a bit", "zeros", "shorter", "pipe", "link", "folder"])
def test_a_damaged_weight_cache_is_packed_again(tmp_path, damage):
    def logits():
        with closing(LiteRTBackend(BUNDLE, num_threads=1, cache_dir=tmp_path / "weights")) as one:
            return one.verify(TOKEN_IDS[:1], 0)[0]

    right = logits()
    (path,) = (tmp_path / "weights").glob("*-tf_lite_prefill_decode-*.xnnpack")
    content = path.read_bytes()
    times = path.stat()
    if damage in ("pipe", "link", "folder"):
        path.unlink()
        if damage == "pipe":
            os.mkfifo(path)
        elif damage == "link":
            (tmp_path / "elsewhere").write_bytes(content)
            path.symlink_to(tmp_path / "elsewhere")
        else:
            path.mkdir()
    else:
        middle = len(content) // 2
        changed = {
            "a bit": content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :],
            "zeros": content[: -middle // 2] + bytes(middle // 2),
            "shorter": content[:-64],
        }
        path.write_bytes(changed[damage])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    np.testing.assert_array_equal(logits(), right)
    assert not list(path.parent.glob("*.tmp"))
    if damage == "folder":
        assert path.is_dir()
    else:
        assert path.is_file()
        assert not path.is_symlink()
        assert path.read_bytes() == content
    if damage == "link":
        assert (tmp_path / "elsewhere").read_bytes() == content


def test_ctrl_c_while_weights_are_packed_leaves_nothing(tmp_path, monkeypatch):
    class Interrupted(litert_model.CompiledModel):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            if arguments[2]:
                raise KeyboardInterrupt  # which Python raises when the call has come back

    monkeypatch.setattr(litert_model, "CompiledModel", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        LiteRTBackend(BUNDLE, num_threads=1, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="access is by lists there")
def test_nothing_is_kept_where_others_can_write(tmp_path, caplog):
    tmp_path.chmod(0o777)
    caplog.set_level(logging.WARNING, "runtime_py")
    for _ in range(2):
        with closing(LiteRTBackend(BUNDLE, num_threads=1, cache_dir=tmp_path)) as backend:
            backend.verify(TOKEN_IDS[:1], 0)
    assert not list(tmp_path.iterdir())
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"]
    assert warning.startswith(f"{tmp_path}: others can write to it")


@pytest.mark.parametrize("in_memory", [False, True])
def test_what_was_packed_is_loaded_by_a_model_that_did_not_pack(tmp_path, monkeypatch, in_memory):
    """The one that packs keeps a buffer as large as the largest weight."""
    paths = []

    class Noted(litert_model.CompiledModel):
        def __init__(self, content, num_threads, weight_cache_path):
            super().__init__(content, num_threads, weight_cache_path)
            paths.append(weight_cache_path)

    monkeypatch.setattr(litert_model, "CompiledModel", Noted)
    if in_memory:
        monkeypatch.setattr(litert, "weight_cache", lambda *_: litert_weight_cache.in_memory())
    num_open = len(os.listdir("/proc/self/fd"))
    with closing(LiteRTBackend(BUNDLE, num_threads=1, cache_dir=tmp_path)) as backend:
        cached = [path for path in paths if path]  # of target and drafter; no embedder has one
        logits, _ = backend.verify(TOKEN_IDS[:1], 0)
    np.testing.assert_allclose(logits[0], REFERENCE["logits"][0], **TOLERANCE)
    assert len(cached) == 4
    if in_memory:
        assert cached[0::2] == cached[1::2]
    else:
        assert all(path.endswith(".tmp") for path in cached[0::2])
        assert {*map(Path, cached[1::2])} == {*tmp_path.glob("*.xnnpack")}
    del backend
    assert len(os.listdir("/proc/self/fd")) == num_open


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
