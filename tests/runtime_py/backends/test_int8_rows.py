"""int8 KV rows, on the toys whose laws test_backends.py holds."""

import numpy as np
import pytest

from runtime_py.errors import RunError
from runtime_py.inspection import INSPECT
from tests.runtime_py.backends.toys import CACHE_LENGTH, INT8_TOYS, TOYS, Toy


@pytest.fixture(params=sorted(INT8_TOYS))
def runtime(request):
    return request.param


@pytest.fixture
def backend(runtime):
    try:
        backend = INT8_TOYS[runtime].open()
    except RunError as error:
        if str(INT8_TOYS[runtime].bundle) in str(error):
            raise
        pytest.skip(str(error))  # the runtime is not installed
    yield backend
    backend.close()


@pytest.fixture
def ids(runtime):
    return INT8_TOYS[runtime].expected()["token_ids"].tolist()


def test_they_take_a_quarter_of_the_memory(runtime, backend):
    whole = TOYS[runtime].open()
    for name, rows in Toy.kv(backend).items():
        assert rows.dtype == np.int8
        assert 4 * rows.nbytes == TOYS[runtime].kv(whole)[name].nbytes
    whole.close()


def test_inspection_says_so(runtime):
    found, whole = (INSPECT[runtime](toys[runtime].bundle) for toys in (INT8_TOYS, TOYS))
    assert (found.kv_types, whole.kv_types) == (("int8",), ("float32",))
    assert 4 * found.kv_bytes_per_token == whole.kv_bytes_per_token
    assert 4 * found.kv_bytes == whole.kv_bytes
    widens = runtime == "litert"  # all rows of a layer, which is no part of the KV rows
    assert any("int8 rows float32" in note for note in found.notes) == widens


def test_what_is_too_large_is_clipped(backend, ids):
    """To what the eager modules are compared with, which clip it too."""
    backend.prefill(ids[:-1], 0)
    assert any((np.abs(rows.astype(int)) >= 127).any() for rows in Toy.kv(backend).values())


@pytest.mark.parametrize("stale", [0, -128, 127])
def test_rows_that_were_never_written_change_nothing(backend, ids, stale):
    expected = [array.copy() for array in backend.verify(ids[:3], 0)]
    for rows in Toy.kv(backend).values():
        rows[...] = stale
    for found, wanted in zip(backend.verify(ids[:3], 0), expected, strict=True):
        assert np.isfinite(wanted).all()
        np.testing.assert_array_equal(found, wanted)


def test_only_the_written_rows_change(backend, ids):
    """They go in and out as one buffer."""
    for rows in Toy.kv(backend).values():
        rows[...] = 99
    backend.verify(ids[:4], 5)
    for name, rows in Toy.kv(backend).items():
        by_row = rows if rows.shape[2] >= CACHE_LENGTH else rows.swapaxes(2, 3)
        assert (np.delete(by_row, slice(5, 9), axis=2) == 99).all(), name
        assert (by_row[:, :, 5:9] != 99).any(axis=3).all(), name
