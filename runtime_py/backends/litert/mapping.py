"""Map a byte range of a file; its pages stay in the file and take no anonymous memory."""

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
        """Drop the pages from memory; they are read again when needed."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap now, or when the last reference to `data` is gone."""
        mapping, self._mapping = self._mapping, None
        self.data = np.zeros(0, np.uint8)
        if mapping is not None:
            with contextlib.suppress(BufferError):
                mapping.close()
