"""A byte range of a file as a `bytes` object that takes no memory: its pages stay in the file.

CompiledModel.from_buffer accepts nothing but `bytes` and keeps a pointer to their content for as
long as the model lives; there is no Python entry for "this part of that file". So the range is
mapped privately (copy on write) and the header of a bytes object is written right in front of it:
one page is copied, every other page stays a clean page of the file. Reading the range into real
bytes instead costs its whole size in memory, and is what happens where the layout of a bytes
object is not the usual one. Remove this when ai_edge_litert takes a memoryview, or a path with an
offset (LiteRtCreateModelFromFd has it in C, but the C API changes from release to release).
"""

import ctypes
import mmap
import platform
import sys
import sysconfig
from pathlib import Path

_HEADER_BYTES = bytes.__basicsize__ - 1  # reference count, type, length, hash; then the content
_WORD_BYTES = ctypes.sizeof(ctypes.c_ssize_t)
_HASH_UNKNOWN = -1


class MappedBytes:
    """bytes begin .. end of a file."""

    def __init__(self, path: Path, begin: int, end: int) -> None:
        self.data: bytes
        self._mapping: mmap.mmap | None = None
        with path.open("rb") as file:
            if _can_map(begin):
                self._map(file.fileno(), begin, end - begin)
            else:
                file.seek(begin)
                self.data = file.read(end - begin)
        self._num_references = sys.getrefcount(self.data)

    def release(self) -> None:
        """Let the pages of the file be read again when they are needed, as if never read."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            # The header's page was written, and would be forgotten.
            start = mmap.ALLOCATIONGRANULARITY * 2
            if len(self._mapping) > start:
                self._mapping.madvise(mmap.MADV_DONTNEED, start)

    def close(self) -> None:
        """Unmap, unless somebody still refers to `data`.

        A traceback may, for instance; letting go of an object whose memory is unmapped crashes.
        What stays mapped costs address space only.
        """
        mapping, self._mapping = self._mapping, None
        unused = sys.getrefcount(self.data) == self._num_references
        self.data = b""
        if mapping is not None and unused:
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(mapping))
            mapping.close()

    def _map(self, descriptor: int, begin: int, length: int) -> None:
        page = mmap.ALLOCATIONGRANULARITY
        start = (begin - _HEADER_BYTES) // page * page
        lead = begin - start
        # Without MAP_NORESERVE a private writable mapping counts as if it were memory, and Linux
        # refuses one that is larger than what is free.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        mapping = mmap.mmap(descriptor, lead + length, flags, protection, offset=start)
        mapping[lead - _HEADER_BYTES : lead] = _bytes_header(length)
        content = (ctypes.c_char * 1).from_buffer(mapping, lead)
        address = ctypes.addressof(content)
        del content  # it would keep close() from unmapping
        found = ctypes.cast(address - _HEADER_BYTES, ctypes.py_object)
        # Nobody owns the first reference, so the count never reaches zero and nobody frees this.
        ctypes.pythonapi.Py_IncRef(found)
        # Nor is it unmapped by an exit, or a backend dropped, without close().
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(mapping))
        self._mapping = mapping
        self.data = found.value


def _can_map(begin: int) -> bool:
    usual_layout = (
        platform.python_implementation() == "CPython"
        and not hasattr(sys, "gettotalrefcount")  # a debug build
        and not sysconfig.get_config_var("Py_GIL_DISABLED")
        and bytes.__basicsize__ == 4 * _WORD_BYTES + 1
    )
    return usual_layout and hasattr(mmap, "MAP_PRIVATE") and begin >= _HEADER_BYTES


def _bytes_header(length: int) -> bytes:
    sample = bytes(64)
    count_and_type = ctypes.string_at(id(sample), 2 * _WORD_BYTES)
    words = (length, _HASH_UNKNOWN)
    return count_and_type + b"".join(
        word.to_bytes(_WORD_BYTES, sys.byteorder, signed=True) for word in words
    )
