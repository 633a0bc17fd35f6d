"""Which layers slide, as the file with the graphs says.

Rows that a sliding layer no longer sees are given back to the system, which changes the text where
the layer does see them. So the runtimes take it from the file that holds the graphs, and from
nowhere else: a file that does not say keeps all its rows.
"""

from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.errors import RunError

KEY = "sliding"  # of a .litertlm's system metadata, an .onnx's metadata, a .pte's methods
_MAX_TEXT = 10_000  # characters: a thousand layers


def write_sliding(entry: SlidingEntry) -> str:
    """As `read_sliding` reads it: the window and the layers, "128 0 1 3"."""
    return " ".join(map(str, numbers_of(entry)))


def read_sliding(path: Path, text: str, layers: Collection[int]) -> SlidingEntry | None:
    """None if the text is empty: an older file.

    Args:
        path: of the file that says so, for errors.
        text: what `write_sliding` writes.
        layers: those that own KV rows.

    Raises:
        RunError: if it says something else, or names a layer without rows.
    """
    if not text:
        return None
    words = text[:_MAX_TEXT].split(" ")
    if not all(word.isascii() and word.isdecimal() and len(word) < 11 for word in words):
        raise RunError(f"{path}: {KEY} is {text[:40]!r}, needed numbers; export again")
    return sliding_entry(path, [int(word) for word in words], layers)


def numbers_of(entry: SlidingEntry) -> list[int]:
    """The window and the layers, as `sliding_entry` reads them."""
    return [entry.window, *entry.layers]


def sliding_entry(path: Path, numbers: list[int], layers: Collection[int]) -> SlidingEntry:
    """The window and the layers. Raises RunError if they are none of this file's."""
    try:
        entry = SlidingEntry(window=numbers[0], layers=tuple(numbers[1:]))
    except (ValidationError, IndexError):
        raise RunError(
            f"{path}: {KEY} is {numbers[:8]}, needed a window and layers; export again"
        ) from None
    unknown = set(entry.layers).difference(layers)
    if unknown:
        raise RunError(
            f"{path}: {KEY} names layer {min(unknown)}, which owns no KV rows; export again"
        )
    return entry
