"""Which layers use sliding-window attention, as the graph file says.

A runtime releases the rows that a sliding layer no longer sees. If the layer does see them, the
answer is wrong; so only the file with the graphs can say which layers slide, and a file that does
not say so keeps all rows.
"""

from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.errors import RunError

KEY = "sliding"  # of a .litertlm's system metadata, an .onnx's metadata, a .pte's methods
_MAX_TEXT = 10_000  # characters: a thousand layers


def write_sliding(entry: SlidingEntry) -> str:
    """The text that `read_sliding` reads: the window, then the layers ("128 0 1 3")."""
    return " ".join(map(str, numbers_of(entry)))


def read_sliding(path: Path, text: str, layers: Collection[int]) -> SlidingEntry | None:
    """Read what `write_sliding` wrote.

    Args:
        path: of the graph file, for errors.
        text: empty in older files.
        layers: those that own KV rows.

    Returns:
        None for an empty text.

    Raises:
        RunError: if the text is malformed or names a layer without rows.
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
    """The window and the layers; raises RunError unless all of them own KV rows."""
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
