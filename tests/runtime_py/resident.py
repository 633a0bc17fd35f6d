"""How much of some memory is resident, as the kernel counts it."""

import ctypes
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from runtime_py.backends.kv_pages import KvBuffer

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_MADV_DONTDUMP, _MADV_DODUMP = 16, 17


def resident_bytes(buffers: Iterable[KvBuffer]) -> int:
    """Of the whole pages in them.

    A page that was only read is the kernel's one page of zeros, and does not count. The pages are
    advised to be no part of a dump, which no others are: so they become mappings of their own.
    """
    buffers = tuple(buffers)
    for buffer in buffers:
        _advise(buffer.pages, _MADV_DONTDUMP)
    try:
        found = dict(_resident_undumped())
    finally:
        for buffer in buffers:
            _advise(buffer.pages, _MADV_DODUMP)
    ours = [m for m in found if any(m.start in b.pages for b in buffers)]
    assert sum(map(len, ours)) == sum(len(buffer.pages) for buffer in buffers)
    return sum(found[mapping] for mapping in ours)


def _resident_undumped() -> Iterator[tuple[range, int]]:
    mapping, resident = range(0), 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if begins := _MAPPING.match(line):
            mapping = range(*(int(address, 16) for address in begins.groups()))
        elif line.startswith("Rss:"):
            resident = 1024 * int(line.split()[1])
        elif line.startswith("VmFlags:") and "dd" in line.split():
            yield mapping, resident


def _advise(pages: range, advice: int) -> None:
    address, size_bytes = ctypes.c_void_p(pages.start), ctypes.c_size_t(len(pages))
    assert ctypes.CDLL(None).madvise(address, size_bytes, advice) == 0
