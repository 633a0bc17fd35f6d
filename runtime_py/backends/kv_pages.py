"""Release the memory of KV rows that no call can read any more.

A sliding layer has as many rows as the context, because the official runtime's graphs need them,
but sees only the last `window` of them. The pages of older rows are released: they take no memory
and read as zeros. A hidden row must be finite, for the mask multiplies it by 0; zeros are.

Only Linux guarantees zeros, and only for private anonymous memory; elsewhere nothing is released.
"""

import ctypes
import functools
import mmap
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime_py.bundle.kv_rows import MARGIN, STEP, needed_rows

_NEVER = sys.maxsize
_MADV_DONTNEED, _MADV_NOHUGEPAGE = 4, 15
_MAP_FIXED = 0x10
_MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class KvBuffer:
    """Where the rows of one layer's keys or values lie.

    Layout matters only for sliding buffers; the others are only released as a whole.
    """

    address: int
    num_heads: int  # runs of rows, one after the other; 1 if each row has all heads
    num_rows: int
    row_bytes: int
    slides: bool

    @property
    def size_bytes(self) -> int:
        return self.num_heads * self.num_rows * self.row_bytes

    @property
    def pages(self) -> range:
        """The pages that lie entirely in it."""
        return whole_pages(self.address, self.size_bytes)

    def pages_before(self, row: int) -> list[range]:
        """For each head, the pages that lie entirely in its rows 0 .. row - 1."""
        heads = range(self.address, self.address + self.size_bytes, self.num_rows * self.row_bytes)
        return [whole_pages(head, row * self.row_bytes) for head in heads]


def whole_pages(address: int, size_bytes: int) -> range:
    """The addresses of the pages that lie entirely in this memory."""
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return range(begin, max(begin, end))


class KvPages:
    """The KV buffers of one backend, and how much of them was released.

    Args:
        buffers: all of them, new: their content is dropped where memory can be released. They must
            outlive this.
        window: rows that a sliding layer sees, the query's own included; None: no layer slides.
    """

    def __init__(self, buffers: Sequence[KvBuffer], window: int | None) -> None:
        self._buffers = buffers
        self._sliding = [buffer for buffer in buffers if buffer.slides]
        self._num_needed = needed_rows(window or 0)
        self._releasable = self._advised = sys.platform == "linux" and _are_private(buffers)
        if self._advised:
            for buffer in buffers:
                # With huge pages, one row would make megabytes resident; in a buffer stored by
                # columns, one row would make all of it resident. A kernel without huge pages
                # refuses this advice, which does no harm.
                _advise(buffer.pages, _MADV_NOHUGEPAGE)
            self._releasable = all(_advise(buffer.pages, _MADV_DONTNEED) for buffer in buffers)
        self._restart()

    @property
    def resumable_from(self) -> int:
        """See Backend.resumable_from."""
        return self._first_kept + self._num_needed if self._first_kept else 0

    def before(self, position: int) -> None:
        """Call this before every target call; `position` is that of its first token."""
        if not 0 < position < self._next_release:
            self._move(position)

    def clear(self) -> None:
        """Make every row zero, by releasing it where that is possible."""
        for buffer in self._buffers:
            begin, end = buffer.address, buffer.address + buffer.size_bytes
            pages = buffer.pages if self._releasable else range(0)
            if pages and _advise(pages, _MADV_DONTNEED):
                ctypes.memset(begin, 0, pages.start - begin)
                begin = pages.stop
            ctypes.memset(begin, 0, end - begin)

    def close(self) -> None:
        """Call this before the buffers are freed; their content is lost.

        madvise's advice stays with an address after it is freed, and the kernel keeps a separate
        mapping for memory whose advice differs: every load would split the heap further, up to the
        limit of 65530 mappings. So the pages are mapped anew, without advice.
        """
        if self._advised:
            for buffer in self._buffers:
                _renew(buffer.pages)
        self._advised = self._releasable = False
        self._buffers, self._sliding = (), []
        self._restart()

    def _restart(self) -> None:
        self._first_kept = 0  # sliding layers' rows before it may be zeros
        releases = self._releasable and bool(self._sliding)
        self._next_release = self._num_needed + MARGIN + STEP if releases else _NEVER

    def _move(self, position: int) -> None:
        if position:
            self._release_before(position - self._num_needed - MARGIN)
            self._next_release = position + STEP
        elif self._first_kept:
            self.clear()  # a new sequence: the last one's rows are stale
            self._restart()

    def _release_before(self, row: int) -> None:
        for buffer in self._sliding:
            gone, free = buffer.pages_before(self._first_kept), buffer.pages_before(row)
            for before, pages in zip(gone, free, strict=True):
                _advise(range(before.stop, pages.stop), _MADV_DONTNEED)
        self._first_kept = row


def _are_private(buffers: Iterable[KvBuffer]) -> bool:
    """Whether it all is private anonymous memory, which reads as zeros once released."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    places = []
    for line in lines:
        addresses, permissions, _, _, inode, *_ = line.split()
        if permissions.endswith("p") and inode == "0":
            begin, _, end = addresses.partition("-")
            places.append((int(begin, 16), int(end, 16)))
    return all(_covered_bytes(buffer, places) == buffer.size_bytes for buffer in buffers)


def _covered_bytes(buffer: KvBuffer, places: Iterable[tuple[int, int]]) -> int:
    first, last = buffer.address, buffer.address + buffer.size_bytes
    return sum(max(0, min(end, last) - max(begin, first)) for begin, end in places)


def _advise(pages: range, advice: int) -> bool:
    """Whether the kernel accepted the advice."""
    return not pages or _libc().madvise(pages.start, len(pages), advice) == 0


def _renew(pages: range) -> None:
    if pages and sys.platform == "linux":
        access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        _libc().mmap(pages.start, len(pages), access, kind | _MAP_FIXED, -1, 0)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
    )
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
