"""Keep LiteRT from loading the GPU accelerator in its wheel: the graphs run on the CPU.

ai_edge_litert 2.3.0 loads libLiteRtWebGpuAccelerator.so with every model, whatever accelerators the
model is compiled for. That library uses LSE atomics (ARMv8.1 instructions), which a Raspberry Pi 4
lacks; it crashes the process. The folder that an environment may name does not help: LiteRT's own
environment asks for the bare file name, which the loader finds beside LiteRT.

The loader does not search for a name that is loaded already. So an empty library of that name is
loaded first; LiteRT finds nothing in it and continues. Remove this when LiteRT loads only the
accelerators that it was asked for.
"""

import contextlib
import ctypes
import functools
import os
import platform
import struct
import sys

ACCELERATOR = "libLiteRtWebGpuAccelerator.so"

_MACHINES = {"x86_64": 62, "aarch64": 183}  # ELF's numbers
_LOAD, _DYNAMIC = 1, 2  # kinds of segments
_READ, _WRITE = 4, 2
_STRINGS, _SYMBOLS, _STRINGS_SIZE, _SYMBOL_SIZE, _SONAME = 5, 6, 10, 11, 14  # dynamic tags
_PAGE_BYTES = 1 << 16  # the largest of any Linux on these machines


@functools.cache
def hide_accelerator() -> None:
    """Load the empty library, once per process. If it does not load, nothing changes."""
    if sys.platform == "linux" and platform.machine() in _MACHINES:
        with contextlib.suppress(OSError):
            load_in_memory(empty_library(ACCELERATOR, _MACHINES[platform.machine()]))


def load_in_memory(content: bytes) -> None:
    """Load a library from memory."""
    descriptor = os.memfd_create(ACCELERATOR)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def empty_library(name: str, machine: int) -> bytes:
    """A 64-bit ELF shared library of that name with nothing in it.

    Args:
        name: by which the loader knows it (DT_SONAME).
        machine: ELF's number of the architecture (e_machine).
    """
    strings = b"\0" + name.encode() + b"\0"
    header_bytes, segment_bytes, num_segments = 64, 56, 2
    dynamic_at = header_bytes + num_segments * segment_bytes
    num_entries, symbol_bytes = 6, 24
    symbols_at = dynamic_at + num_entries * 16
    strings_at = symbols_at + symbol_bytes
    end = strings_at + len(strings)
    identity = b"\x7fELF" + bytes((2, 1, 1))  # 64 bits, little endian, version 1
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(identity, 3, machine, 1),  # 3: a shared library
        *(0, header_bytes, 0, 0),
        *(header_bytes, segment_bytes, num_segments, 0, 0, 0),
    )
    dynamic = [(_SONAME, 1), (_STRINGS, strings_at), (_SYMBOLS, symbols_at)]
    dynamic += [(_STRINGS_SIZE, len(strings)), (_SYMBOL_SIZE, symbol_bytes), (0, 0)]
    content = (
        header
        + _segment(_LOAD, 0, end)
        + _segment(_DYNAMIC, dynamic_at, num_entries * 16)
        + b"".join(struct.pack("<QQ", *entry) for entry in dynamic)
        + bytes(symbol_bytes)
        + strings
    )
    assert len(content) == end
    return content


def _segment(kind: int, start: int, num_bytes: int) -> bytes:
    # Writable, because the loader writes the library's address into the dynamic segment.
    alignment = _PAGE_BYTES if kind == _LOAD else 8
    places = (start, start, start, num_bytes, num_bytes, alignment)
    return struct.pack("<IIQQQQQQ", kind, _READ | _WRITE, *places)
