"""What is released, and what never: in memory of our own, without a runtime."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.backends import kv_pages
from runtime_py.backends.kv_pages import KvBuffer, KvPages
from runtime_py.bundle.kv_rows import MARGIN, STEP
from tests.runtime_py.resident import resident_bytes

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux promises zeros")
PAGE = mmap.PAGESIZE


class Memory:
    """Anonymous memory that holds ones, with a KV buffer somewhere in it."""

    def __init__(self, heads, rows, row_floats, *, offset=0, slides=True, shared=False):
        size_bytes = heads * rows * row_floats * 4
        flags = mmap.MAP_ANONYMOUS | (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE)
        self.map = mmap.mmap(-1, offset + size_bytes, flags=flags)
        numbers = np.frombuffer(self.map, np.float32, size_bytes // 4, offset)
        self.rows = numbers.reshape(heads, rows, row_floats)
        self.buffer = KvBuffer(
            address=self.rows.ctypes.data,
            num_heads=heads,
            num_rows=rows,
            row_bytes=row_floats * 4,
            slides=slides,
        )

    def write(self, first=0, end=None):
        self.rows[:, first:end] = 1.0


def walk(pages, memories, positions):
    """Decode at each position: write its row, as a target would."""
    for position in positions:
        pages.before(position)
        for memory in memories:
            memory.write(position, position + 1)


@linux_only
def test_what_lies_far_behind_the_window_is_not_resident_and_reads_as_zeros():
    sliding, full = Memory(2, 8192, 64), Memory(2, 8192, 64, slides=False)
    window = 32
    pages = KvPages([sliding.buffer, full.buffer], window)
    assert resident_bytes([sliding.buffer, full.buffer]) == 0
    walk(pages, [sliding, full], range(6000))
    kept = window + 1 + MARGIN + STEP
    most = 2 * (kept * 64 * 4 + 2 * PAGE)
    assert resident_bytes([sliding.buffer, full.buffer]) <= most + 2 * (6000 * 64 * 4 + PAGE)
    assert not sliding.rows[:, : 6000 - kept - PAGE // 256].any()
    assert full.rows[:, :6000].all()
    assert 6000 - MARGIN - STEP <= pages.resumable_from <= 6000 - MARGIN
    assert sliding.rows[:, pages.resumable_from - window - 1 : 6000].all()


@linux_only
def test_another_sequence_begins_with_nothing_resident():
    sliding, full = Memory(1, 8192, 64), Memory(1, 8192, 64, slides=False)
    pages = KvPages([sliding.buffer, full.buffer], 32)
    walk(pages, [sliding, full], range(4000))
    pages.before(0)
    assert pages.resumable_from == 0
    assert resident_bytes([sliding.buffer, full.buffer]) == 0
    assert not sliding.rows.any()
    assert not full.rows.any()
    walk(pages, [sliding, full], range(200))
    assert sliding.rows[0, :200].all()


@linux_only
@pytest.mark.parametrize("offset", [0, 64, PAGE - 64])
def test_clear_makes_zeros_of_whatever_was_there(offset):
    for rows in (4, 1000):
        memory = Memory(2, rows, 16, offset=offset)
        around = np.frombuffer(memory.map, np.uint8)
        pages = KvPages([memory.buffer], 4)
        around[:] = 1
        pages.clear()
        assert not memory.rows.any()
        assert around[:offset].all()


def test_shared_memory_keeps_everything():
    """It would not read as zeros."""
    memory = Memory(1, 4096, 64, shared=True)
    memory.write()
    pages = KvPages([memory.buffer], 16)
    walk(pages, [memory], range(4000))
    assert memory.rows.all()
    assert pages.resumable_from == 0
    pages.clear()
    assert not memory.rows.any()


def test_another_system_keeps_everything(monkeypatch):
    monkeypatch.setattr(kv_pages.sys, "platform", "darwin")
    memory = Memory(1, 4096, 64)
    memory.write()
    pages = KvPages([memory.buffer], 16)
    walk(pages, [memory], range(4000))
    assert memory.rows.all()
    assert pages.resumable_from == 0
    pages.clear()
    assert not memory.rows.any()


@linux_only
def test_without_a_window_nothing_is_released():
    memory = Memory(1, 4096, 64, slides=False)
    pages = KvPages([memory.buffer], None)
    walk(pages, [memory], range(4000))
    assert memory.rows[0, :4000].all()
    assert pages.resumable_from == 0


layouts = st.fixed_dictionaries(
    {
        "heads": st.integers(1, 3),
        "rows": st.integers(1, 1500),
        "row_floats": st.sampled_from([1, 16, 24, 64, 256]),
        "offset": st.integers(0, 2 * PAGE // 64).map(lambda lines: 64 * lines),
    }
)


@linux_only
@given(layout=layouts, window=st.integers(1, 300), data=st.data())
def test_no_needed_row_is_ever_released(layout, window, data):
    """Whatever the calls: forward by any step, and back by as much as is promised."""
    memory = Memory(**layout)
    num_rows = layout["rows"]
    pages = KvPages([memory.buffer], window)
    memory.write()
    position, furthest = 0, 0
    for _ in range(data.draw(st.integers(1, 12))):
        pages.before(position)
        first_needed = max(0, position - window - 1)
        assert memory.rows[:, first_needed:].all() or pages.resumable_from == position == 0
        furthest = max(furthest, position)
        assert pages.resumable_from <= max(0, furthest - MARGIN)
        if position == 0:
            memory.write()
            furthest = 0
        back = data.draw(st.integers(pages.resumable_from, num_rows - 1) | st.just(0))
        position = back


@linux_only
def test_the_heap_is_in_one_piece_when_the_buffers_are_freed():
    """Rows of 60 kB lie in the heap: a buffer without huge pages cuts it in three."""

    def load_and_close():
        rows = [np.ones((1, 240, 64), np.float32) for _ in range(8)]
        pages = KvPages([KvBuffer(each.ctypes.data, 1, 240, 256, True) for each in rows], 32)
        cut = num_mappings()
        pages.close()
        return cut

    num_before = num_mappings()
    assert load_and_close() > num_before + 8
    for _ in range(20):
        load_and_close()
    assert num_mappings() <= num_before + 2


def num_mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())
