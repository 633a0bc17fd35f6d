"""Give the memory of KV rows that no call can look at any more back to the system.

A sliding layer has as many rows as the context, so that the graphs stay the official runtime's,
but sees only the last `window` of them. The pages of older rows are released: they then read as
zeros and are not resident. Zeros are finite, which a hidden row must be: it is multiplied by 0.

Only Linux promises zeros, and only for private anonymous memory; elsewhere nothing is released.
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

    Of a buffer that does not slide, and so is only ever released as a whole, any layout will do.
    """

    address: int
    num_heads: int  # runs of rows one after the other; 1 where a row has all heads
    num_rows: int
    row_bytes: int
    slides: bool

    @property
    def size_bytes(self) -> int:
        return self.num_heads * self.num_rows * self.row_bytes

    @property
    def pages(self) -> range:
        """The whole pages in it."""
        return whole_pages(self.address, self.size_bytes)

    def pages_before(self, row: int) -> list[range]:
        """For each head, the whole pages in which nothing but rows 0 .. row - 1 of it lies."""
        heads = range(self.address, self.address + self.size_bytes, self.num_rows * self.row_bytes)
        return [whole_pages(head, row * self.row_bytes) for head in heads]


def whole_pages(address: int, size_bytes: int) -> range:
    """The addresses of the pages that lie in this memory from beginning to end."""
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return range(begin, max(begin, end))


class KvPages:
    """The KV buffers of one backend, and how much of them was released.

    Made for new buffers: what they hold is dropped where memory can be released at all, and left
    alone elsewhere.

    Args:
        buffers: all of them; they must outlive this.
        window: rows that a sliding layer sees, the query's own included; None: no layer slides.
    """

    def __init__(self, buffers: Sequence[KvBuffer], window: int | None) -> None:
        self._buffers = buffers
        self._sliding = [buffer for buffer in buffers if buffer.slides]
        self._num_needed = needed_rows(window or 0)
        self._releasable = self._advised = sys.platform == "linux" and _are_private(buffers)
        if self._advised:
            for buffer in buffers:
                # With huge pages one row would make megabytes resident, and one of a buffer that
                # lies by columns all of it. A kernel without them refuses, and has none.
                _advise(buffer.pages, _MADV_NOHUGEPAGE)
            self._releasable = all(_advise(buffer.pages, _MADV_DONTNEED) for buffer in buffers)
        self._restart()

    @property
    def resumable_from(self) -> int:
        """As Backend.resumable_from."""
        return self._first_kept + self._num_needed if self._first_kept else 0

    def before(self, position: int) -> None:
        """Before every call of the target, whose first token is at this position."""
        if not 0 < position < self._next_release:
            self._move(position)

    def clear(self) -> None:
        """Make every row zero, at the price of no memory where it can be released."""
        for buffer in self._buffers:
            begin, end = buffer.address, buffer.address + buffer.size_bytes
            pages = buffer.pages if self._releasable else range(0)
            if pages and _advise(pages, _MADV_DONTNEED):
                ctypes.memset(begin, 0, pages.start - begin)
                begin = pages.stop
            ctypes.memset(begin, 0, end - begin)

    def close(self) -> None:
        """Before the buffers are freed: what they hold is lost.

        Advice stays with the addresses after they are freed, and memory that differs in it is a
        mapping of its own: the heap would be cut into a few more at every load, up to the kernel's
        limit (65530 by default). Fresh memory in the same place has no advice.
        """
        if self._advised:
            for buffer in self._buffers:
                _renew(buffer.pages)
        self._advised = self._releasable = False
        self._buffers, self._sliding = (), []
        self._restart()

    def _restart(self) -> None:
        self._first_kept = 0  # rows of sliding layers before it may be zeros
        releases = self._releasable and bool(self._sliding)
        self._next_release = self._num_needed + MARGIN + STEP if releases else _NEVER

    def _move(self, position: int) -> None:
        if position:
            self._release_before(position - self._num_needed - MARGIN)
            self._next_release = position + STEP
        elif self._first_kept:
            self.clear()  # another sequence: whatever the last one left is stale
            self._restart()

    def _release_before(self, row: int) -> None:
        for buffer in self._sliding:
            gone, free = buffer.pages_before(self._first_kept), buffer.pages_before(row)
            for before, pages in zip(gone, free, strict=True):
                _advise(range(before.stop, pages.stop), _MADV_DONTNEED)
        self._first_kept = row


def _are_private(buffers: Iterable[KvBuffer]) -> bool:
    """Whether all of it is anonymous memory of this process alone, which reads as zeros."""
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
    """Whether the system took the advice."""
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
