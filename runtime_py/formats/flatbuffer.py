"""Reader of untrusted flatbuffers: every offset is checked before it is followed.

Fields are numbered as in the schema of the format, which the callers name.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

MAX_STRING_BYTES = 1 << 16


class FlatbufferError(Exception):
    """An offset that leads out of the buffer; callers say which file and raise RunError."""


class Table:
    """One flatbuffer table, every access bounds-checked. Fields are numbered as in the schema."""

    def __init__(self, data: bytes | memoryview, position: int) -> None:
        self._data = data
        self._position = position
        self._vtable = position - self._unpack("<i", position)
        self._vtable_bytes = self._unpack("<H", self._vtable)

    @classmethod
    def root(cls, data: bytes | memoryview) -> "Table":
        return cls(data, unpack_at(data, "<I", 0))

    def number(self, field: int, code: str) -> int:
        """The scalar field of struct format `code`, 0 when absent."""
        position = self.position(field)
        return self._unpack(code, position) if position else 0

    def table(self, field: int) -> "Table | None":
        position = self.position(field)
        return Table(self._data, self._follow(position)) if position else None

    def tables(self, field: int) -> Iterator["Table"]:
        start, length = self.vector(field, item_bytes=4)
        for index in range(length):
            yield Table(self._data, self._follow(start + 4 * index))

    def string(self, field: int) -> str:
        start, length = self.vector(field, item_bytes=1)
        if length > MAX_STRING_BYTES:
            raise FlatbufferError(f"a string of {length} bytes")
        return bytes(self._data[start : start + length]).decode("utf-8", errors="replace")

    def numbers(self, field: int, code: str, most: int) -> tuple[int, ...]:
        """A vector of at most `most` scalars of struct format `code`; empty when absent."""
        item_bytes = struct.calcsize(code)
        start, length = self.vector(field, item_bytes)
        if length > most:
            raise FlatbufferError(f"a vector of {length} numbers, at most {most} make sense")
        return tuple(self._unpack(code, start + item_bytes * index) for index in range(length))

    def vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        """(position of the first item, number of items); (0, 0) when absent."""
        position = self.position(field)
        if not position:
            return 0, 0
        start = self._follow(position)
        length = self._unpack("<I", start)
        if start + 4 + length * item_bytes > len(self._data):
            raise FlatbufferError("a vector ends past the end of its buffer")
        return start + 4, length

    def position(self, field: int) -> int:
        """Where the field lies in the buffer; 0 when absent."""
        entry = 4 + 2 * field
        if entry + 2 > self._vtable_bytes:
            return 0
        offset = self._unpack("<H", self._vtable + entry)
        return self._position + offset if offset else 0

    def _follow(self, position: int) -> int:
        return position + self._unpack("<I", position)

    def _unpack(self, code: str, position: int) -> int:
        return unpack_at(self._data, code, position)


def unpack_at(data: bytes | memoryview, code: str, position: int) -> int:
    """One integer of struct format `code`. Raises FlatbufferError when it is not inside `data`."""
    if position < 0 or position + struct.calcsize(code) > len(data):
        raise FlatbufferError("an offset leads out of its buffer")
    value: int = struct.unpack_from(code, data, position)[0]
    return value


def pick(items: Sequence[Item], index: int) -> Item:
    """items[index] for an index from a file. Raises FlatbufferError when there is no such item."""
    if not 0 <= index < len(items):
        raise FlatbufferError(f"item {index} of a list of {len(items)}")
    return items[index]
