"""Map a file into memory."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime_py.errors import RunError


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """The whole file, read-only.

    It is unmapped with its last view, so views that a traceback keeps stay valid.
    """
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise RunError(f"{path}: cannot read it: {error}; copy the file again") from error
    yield memoryview(mapping)
