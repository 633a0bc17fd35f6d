import re
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends.litert.mapping import MappedRange

CONTENT = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(
    ("begin", "end"),
    [(0, 10), (31, 40), (32, 33), (4095, 5000), (4096, 9000), (16384, 100_000), (4100, 4100 + 7)],
)
def test_a_range_is_its_content(path, begin, end):
    mapped = MappedRange(path, begin, end)
    assert mapped.data.tobytes() == CONTENT[begin:end]
    mapped.release()
    assert mapped.data.tobytes() == CONTENT[begin:end]
    mapped.close()
    mapped.close()
    assert mapped.data.size == 0
    assert path.read_bytes() == CONTENT


def test_a_range_of_a_shorter_file_is_refused(path):
    with pytest.raises(ValueError, match="mmap length is greater than file size"):
        MappedRange(path, 5000, 100_001)


def test_what_is_still_referenced_stays_mapped(path):
    mapped = MappedRange(path, 5000, 6000)
    kept = mapped.data
    mapped.close()
    del mapped
    assert kept.tobytes() == CONTENT[5000:6000]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_a_mapped_range_takes_no_memory(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(256 << 20)

    def resident_bytes(kind):
        found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
        return int(found.group(1)) << 10

    before = resident_bytes("Anonymous")
    mapped = MappedRange(path, 16384, 256 << 20)
    assert not mapped.data.any()  # touches every page
    assert resident_bytes("Anonymous") - before < 8 << 20
    touched = resident_bytes("Rss")
    mapped.release()
    assert resident_bytes("Rss") < touched - (240 << 20)
    mapped.close()
