"""Which layers slide: as a file with graphs says it, or not at all."""

from pathlib import Path

import pytest

from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.bundle.sliding import numbers_of, read_sliding, sliding_entry, write_sliding
from runtime_py.errors import RunError

FILE = Path("model.litertlm")
ENTRY = SlidingEntry(window=512, layers=(0, 1, 3))


def test_what_is_written_is_read():
    assert write_sliding(ENTRY) == "512 0 1 3"
    assert read_sliding(FILE, write_sliding(ENTRY), range(4)) == ENTRY
    assert sliding_entry(FILE, numbers_of(ENTRY), range(4)) == ENTRY


def test_an_older_file_says_nothing():
    assert read_sliding(FILE, "", range(4)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("512", "needed a window and layers"),
        ("0 1", "needed a window and layers"),
        ("512 1 4", "names layer 4, which owns no KV rows"),
        ("512 -1", "needed numbers"),
        ("512  1", "needed numbers"),
        ("512 ²", "needed numbers"),
        ("9" * 5000, "needed numbers"),
        ("1 " * 5000, "needed numbers"),
        ("99999999999 1", "needed numbers"),
        ("9999999999 1", "needed a window and layers"),
    ],
)
def test_anything_else_is_one_line(text, reason):
    with pytest.raises(RunError, match=reason) as raised:
        read_sliding(FILE, text, range(4))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200
