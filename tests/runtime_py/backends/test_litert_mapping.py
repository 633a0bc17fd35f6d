import re
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends import litert_mapping
from runtime_py.backends.litert_mapping import MappedBytes

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
def test_a_range_is_a_bytes_object_of_its_content(path, begin, end):
    mapped = MappedBytes(path, begin, end)
    assert type(mapped.data) is bytes
    assert mapped.data == CONTENT[begin:end]
    assert len(mapped.data) == end - begin
    assert hash(mapped.data) == hash(CONTENT[begin:end])
    mapped.release()
    assert mapped.data == CONTENT[begin:end]
    mapped.close()
    mapped.close()
    assert path.read_bytes() == CONTENT


def test_without_the_usual_layout_the_range_is_read(path, monkeypatch):
    monkeypatch.setattr(litert_mapping, "_can_map", lambda _: False)
    mapped = MappedBytes(path, 5000, 6000)
    assert mapped.data == CONTENT[5000:6000]
    mapped.close()


def test_bytes_that_are_still_referenced_stay_mapped(path):
    mapped = MappedBytes(path, 5000, 6000)
    kept = mapped.data
    mapped.close()
    del mapped
    assert kept == CONTENT[5000:6000]
    del kept


def test_a_mapping_that_was_not_closed_stays_valid(path):
    kept = MappedBytes(path, 5000, 6000).data
    assert kept == CONTENT[5000:6000]
    del kept


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_a_mapped_range_takes_no_memory(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(256 << 20)

    def resident_bytes(kind):
        found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
        return int(found.group(1)) << 10

    before = resident_bytes("Anonymous")
    mapped = MappedBytes(path, 16384, 256 << 20)
    assert mapped.data.count(b"\x01") == 0  # touches every page
    assert resident_bytes("Anonymous") - before < 8 << 20
    touched = resident_bytes("Rss")
    mapped.release()
    assert resident_bytes("Rss") < touched - (240 << 20)
    mapped.close()
