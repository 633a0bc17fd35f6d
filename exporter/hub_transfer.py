"""Brings one large file from the hub: what an interruption leaves is kept and gone on with.

huggingface_hub 2.4 keeps nothing of a file that did not come whole (file_download.py,
_download_to_tmp_and_move), and E2B is one file of 10 GB. So the bytes are streamed here, through
its session, into the place where its cache looks for them.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import get_session, hf_raise_for_status

from exporter.errors import ExportError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10
TIMEOUT_S = 20.0
MAX_FAILURES = 5  # requests in a row that bring nothing
WAIT_S = 1.0  # before the second of them; twice as long before each further one


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """What the hub's listing says about one file."""

    name: str
    size_bytes: int
    sha256: str  # its name among the cache's blobs


@dataclass
class _Partial:
    """The first bytes of a file, on disk and in the digest."""

    file: BinaryIO
    length: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def read_back(self) -> None:
        """Take over what an earlier run left."""
        self.file.seek(0)
        while chunk := self.file.read(CHUNK_BYTES):
            self.digest.update(chunk)
            self.length += len(chunk)

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.length += len(chunk)

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.length, self.digest = 0, hashlib.sha256()


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One file on its way into the cache."""

    url: str
    headers: Mapping[str, str]
    file: RemoteFile
    blob: Path  # where it lies when it is complete and its checksum right
    lock: Path  # the one that huggingface_hub takes for this blob
    wait_s: float = WAIT_S

    @property
    def partial(self) -> Path:
        return self.blob.with_name(f"{self.blob.name}.incomplete")

    @property
    def bytes_there(self) -> int:
        """What need not be asked for again."""
        for path in (self.blob, self.partial):
            if path.is_file():
                return min(path.stat().st_size, self.file.size_bytes)
        return 0

    def run(self, on_length: Callable[[int], None]) -> None:
        """Complete the file.

        Args:
            on_length: called with the number of its bytes that are there.

        Raises:
            ExportError: the bytes that came are not the file's.
            httpx2.HTTPError: the hub refuses, or nothing came any more; what came is kept.
            OSError: the disk refuses.
        """
        self.blob.parent.mkdir(parents=True, exist_ok=True)
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with self._held():
            if self.blob.exists():
                return
            with self.partial.open("ab+") as file:
                partial = _Partial(file)
                partial.read_back()
                self._complete(partial, on_length)
                file.flush()
                os.fsync(file.fileno())
            if partial.digest.hexdigest() != self.file.sha256:
                self.partial.unlink()
                raise ExportError(
                    f"{self.file.name}: {partial.length} bytes came with sha256 "
                    f"{partial.digest.hexdigest()[:12]}…, the hub's listing says "
                    f"{self.file.sha256[:12]}…; they were removed, run the command again"
                )
            self.partial.rename(self.blob)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Another export, or `hf download`, may be at the same file."""
        lock = FileLock(self.lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("download    waiting for another process at %s", self.file.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _complete(self, partial: _Partial, on_length: Callable[[int], None]) -> None:
        failures, furthest = 0, partial.length
        while partial.length != self.file.size_bytes:
            problem: Exception = ExportError(
                f"{self.file.name}: the hub ends before all {self.file.size_bytes} bytes came; "
                "run the command again, it goes on from there"
            )
            try:
                self._stream(partial, on_length)
            except httpx2.TransportError as error:
                problem = error
            self._refuse_longer(partial)
            failures = failures + 1 if partial.length <= furthest else 0
            furthest = max(furthest, partial.length)
            if failures >= MAX_FAILURES:
                raise problem
            if failures:
                time.sleep(self.wait_s * 2 ** (failures - 1))

    def _stream(self, partial: _Partial, on_length: Callable[[int], None]) -> None:
        """Append what one request brings."""
        # Bytes as they are stored: a range of a compressed answer would be of no use.
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if partial.length:
            headers["Range"] = f"bytes={partial.length}-"
        # The session follows the hub's redirection to its storage, and leaves the token behind.
        with get_session().stream("GET", self.url, headers=headers, timeout=TIMEOUT_S) as response:
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                partial.restart()
                return
            hf_raise_for_status(response)
            if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                partial.restart()  # all of it comes, whatever was asked for
            for chunk in response.iter_raw():  # as it comes: what was gathered would be lost
                partial.write(chunk)
                on_length(min(partial.length, self.file.size_bytes))
                if partial.length > self.file.size_bytes:
                    return

    def _refuse_longer(self, partial: _Partial) -> None:
        if partial.length > self.file.size_bytes:
            partial.restart()
            raise ExportError(
                f"{self.file.name}: the hub sends more than the {self.file.size_bytes} bytes it "
                "lists; they were removed, run the command again"
            )
