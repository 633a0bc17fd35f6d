"""The one reader of JSON that came from elsewhere.

Python's own reader keeps the last of duplicate keys, takes NaN and Infinity, and raises
RecursionError for a text that is nested too deeply; what it reads can be nested so deeply that
printing it fails.
"""

import json
import math
from typing import Any, NoReturn

from runtime_py.terminal.printable import shown

MAX_BYTES = 100 << 20  # the longest safetensors header that its authors allow
MAX_DEPTH = 32  # objects and arrays inside each other; the Kotlin reader has the same limit
# transformers writes 10**30 for "no limit" (model_max_length); a double holds 308 digits.
_MAX_DIGITS = 40


def read_json(text: str | bytes, max_bytes: int = MAX_BYTES) -> Any:
    """Read one JSON document.

    Args:
        text: the document; bytes are UTF-8.
        max_bytes: a longer text is refused unread (a str's characters are counted).

    Raises:
        ValueError: one line that says why it is not valid or not safe JSON.
    """
    if len(text) > max_bytes:
        raise ValueError(f"{len(text)} bytes, at most {max_bytes} are read")
    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    _check_depth(value)
    return value


def read_object(text: str | bytes, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read one JSON document that must be an object; raises ValueError as read_json does."""
    value = read_json(text, max_bytes)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, needed an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse duplicate keys: parsers disagree which one wins."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {shown(repr(key))}")
            seen.add(key)
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{shown(digits)} is beyond a double")
    return value


def _bounded(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, at most {_MAX_DIGITS} are read")
    return int(digits)


def _check_depth(value: Any) -> None:
    """Level by level: a recursive walk would fail where this must not."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
