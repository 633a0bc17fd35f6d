"""Reader of untrusted protobuf messages: every length is checked before it is followed.

Fields are numbered as in the .proto file of the format, which the callers name.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_SIGN = 1 << 63


class ProtobufError(Exception):
    """A field that leads out of the message; callers say which file and raise RunError."""


class Message:
    """One message: its fields in order; their content is not read."""

    def __init__(self, data: memoryview) -> None:
        self._numbers: dict[int, list[int]] = {}
        self._pieces: dict[int, list[memoryview]] = {}
        position = 0
        while position < len(data):
            tag, position = _varint(data, position)
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                value, position = _varint(data, position)
                self._numbers.setdefault(number, []).append(value)
            elif kind == _BYTES:
                length, position = _varint(data, position)
                if position + length > len(data):
                    raise ProtobufError("a field ends past the end of its message")
                self._pieces.setdefault(number, []).append(data[position : position + length])
                position += length
            elif kind in (_FIXED64, _FIXED32):
                position += 8 if kind == _FIXED64 else 4
            else:
                raise ProtobufError(f"a field of the unknown kind {kind}")
        if position > len(data):
            raise ProtobufError("a field ends past the end of its message")

    def number(self, field: int) -> int:
        """The last value of an int64 field, 0 when absent."""
        value = self._numbers.get(field, [0])[-1]
        return value - 2 * _SIGN if value >= _SIGN else value

    def numbers(self, field: int) -> tuple[int, ...]:
        """The values of a repeated int64 field, packed or not; negative ones are refused."""
        values = list(self._numbers.get(field, ()))
        for piece in self._pieces.get(field, ()):
            position = 0
            while position < len(piece):
                value, position = _varint(piece, position)
                values.append(value)
        if max(values, default=0) >= _SIGN:
            raise ProtobufError("a negative number")
        return tuple(values)

    def text(self, field: int) -> str:
        return self.data(field).decode("utf-8", errors="replace")

    def texts(self, field: int) -> list[str]:
        return [bytes(p).decode("utf-8", errors="replace") for p in self._pieces.get(field, ())]

    def data(self, field: int) -> bytes:
        pieces = self._pieces.get(field)
        return bytes(pieces[-1]) if pieces else b""

    def size_bytes(self, field: int) -> int:
        """The total size of all values of a bytes field."""
        return sum(map(len, self._pieces.get(field, ())))

    def message(self, field: int) -> "Message":
        """The last value of a message field, empty when absent."""
        pieces = self._pieces.get(field)
        return Message(pieces[-1] if pieces else memoryview(b""))

    def messages(self, field: int) -> Iterator["Message"]:
        for piece in self._pieces.get(field, ()):
            yield Message(piece)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A varint: (value, position after it)."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(data):
            raise ProtobufError("a number ends past the end of its message")
        byte = data[position + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value & ((1 << 64) - 1), position + index + 1
    raise ProtobufError("a number of more than 64 bits")
