"""How much of some memory is resident, as the kernel counts it."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from runtime_py.backends.kv_pages import KvBuffer

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


def resident_bytes(buffers: Iterable[KvBuffer]) -> int:
    """Of the mappings with the buffers' pages, which KvPages has set apart from all others.

    A page that was only read is the kernel's one page of zeros, and does not count.
    """
    places = [buffer.pages for buffer in buffers]
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("only Linux tells")
    found, mapping = 0, range(0)
    resident: dict[range, int] = {}
    for line in smaps.read_text().splitlines():
        if begins := _MAPPING.match(line):
            mapping = range(*(int(address, 16) for address in begins.groups()))
        elif line.startswith("Rss:"):
            resident[mapping] = 1024 * int(line.split()[1])
        elif line.startswith("VmFlags:") and "nh" in line.split():
            ours = any(p.start < mapping.stop and mapping.start < p.stop for p in places)
            found += ours * resident[mapping]
    return found
