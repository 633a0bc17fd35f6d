"""A byte range of a file as memory that takes none: its pages stay in the file."""

import contextlib
import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt


class MappedRange:
    """Bytes begin .. end of a file, mapped for reading.

    Raises:
        OSError: if the file cannot be mapped.
        ValueError: if it is shorter, or the range is empty.
    """

    def __init__(self, path: Path, begin: int, end: int) -> None:
        page = mmap.ALLOCATIONGRANULARITY
        start = begin // page * page
        with path.open("rb") as file:
            self._mapping: mmap.mmap | None = mmap.mmap(
                file.fileno(), end - start, access=mmap.ACCESS_READ, offset=start
            )
        self.data: npt.NDArray[np.uint8] = np.frombuffer(
            self._mapping, np.uint8, end - begin, begin - start
        )

    def release(self) -> None:
        """Let the pages of the file be read again when they are needed, as if never read."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap, unless somebody still refers to `data`; then it stays mapped as long as that."""
        mapping, self._mapping = self._mapping, None
        self.data = np.zeros(0, np.uint8)
        if mapping is not None:
            with contextlib.suppress(BufferError):
                mapping.close()
