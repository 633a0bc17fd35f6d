"""The C API of LiteRT: that it is the one this package was written by, and what it is given."""

from importlib import metadata

import numpy as np
import pytest

from runtime_py.backends.litert import library as litert_library
from runtime_py.errors import RunError

pytest.importorskip("ai_edge_litert")


def load():
    """As the first call of a process."""
    return litert_library.load_library.__wrapped__()


def test_another_release_is_refused_by_number(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "2.9.1")
    with pytest.raises(RunError, match=r"ai-edge-litert is 2\.9\.1, this runtime needs 2\.3\.x"):
        load()


def test_a_library_without_a_function_is_one_line(monkeypatch):
    more = litert_library._FUNCTIONS | {"LiteRtOfAnotherYear": ()}
    monkeypatch.setattr(litert_library, "_FUNCTIONS", more)
    with pytest.raises(RunError, match=r"does not load: .*LiteRtOfAnotherYear") as raised:
        load()
    assert "\n" not in str(raised.value)


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr(litert_library, "_NAMES", {litert_library.sys.platform: "libNone.so"})
    with pytest.raises(RunError, match=r"does not load: .*libNone.so"):
        load()


@pytest.mark.parametrize("shape", [(1,), (1, 1, 7, 3), (1, 5, 1)])
def test_arrays_are_zero_and_aligned(shape):
    array = litert_library.aligned(shape, np.float32)
    assert array.shape == shape
    assert array.ctypes.data % 64 == 0
    assert not array.any()
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_what_no_memory_holds_is_one_line():
    with pytest.raises(RunError, match="use a shorter --context"):
        litert_library.aligned((1 << 30, 1 << 28), np.float32)


def test_content_that_is_no_model_is_an_error():
    with pytest.raises(litert_library.LiteRtError, match="status"):
        litert_library.CompiledModel(np.zeros(4096, np.uint8), 1, "")
