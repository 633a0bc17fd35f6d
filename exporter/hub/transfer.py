"""Download one file from the hub; downloads resume after an interruption.

huggingface_hub 2.4 keeps nothing of a file that did not come whole (file_download.py,
_download_to_tmp_and_move), and E2B is one file of 10 GB. Of a small file it takes the ETag that the
hub sends for the name of a file in its cache (file_download.py, _hf_hub_download_to_cache_dir), so
that "../../../.ssh/authorized_keys" is written there. So the bytes of all files are streamed here,
under the checksum that the listing names, into the place where its cache looks for them.
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

from exporter.errors import ExportError
from exporter.hub.request import MIN_BYTES, TIMEOUT_S, Answer, ask
from runtime_py.terminal.printable import shown

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10
MAX_FAILURES = 5  # requests in a row that bring hardly any bytes
WAIT_S = 1.0  # before the second; doubles before each further one


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file in the hub's listing."""

    name: str
    size_bytes: int
    blob_id: str  # its checksum, and its name among the cache's blobs

    @property
    def is_large(self) -> bool:
        """Whether it is in large-file storage, under its sha256; git names the others by sha1."""
        return len(self.blob_id) == 64

    def new_digest(self) -> "hashlib._Hash":
        """A digest that equals `blob_id` once all bytes were added."""
        if self.is_large:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)


@dataclass
class _Partial:
    """The first bytes of a file, on disk and in the digest."""

    file: BinaryIO
    new_digest: Callable[[], "hashlib._Hash"]
    length: int = 0
    digest: "hashlib._Hash" = field(init=False)

    def __post_init__(self) -> None:
        self.digest = self.new_digest()

    def read_back(self) -> None:
        """Add the bytes that an earlier run left."""
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
        self.length, self.digest = 0, self.new_digest()


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The download of one file into the cache."""

    url: str
    headers: Mapping[str, str]
    file: RemoteFile
    blob: Path  # its final place, once complete and verified
    lock: Path  # huggingface_hub's lock for this blob
    wait_s: float = WAIT_S
    timeout_s: float = TIMEOUT_S

    @property
    def partial(self) -> Path:
        return self.blob.with_name(f"{self.blob.name}.incomplete")

    @property
    def bytes_there(self) -> int:
        """The bytes that need not be downloaded again."""
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
                partial = _Partial(file, self.file.new_digest)
                partial.read_back()
                self._complete(partial, on_length)
                file.flush()
                os.fsync(file.fileno())
            if partial.digest.hexdigest() != self.file.blob_id:
                self.partial.unlink()
                raise ExportError(
                    f"{self.file.name}: {partial.length} bytes came with the checksum "
                    f"{partial.digest.hexdigest()[:12]}…, the hub's listing says "
                    f"{self.file.blob_id[:12]}…; they were removed, run the command again"
                )
            self.partial.rename(self.blob)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Wait for another export, or `hf download`, that is downloading the same file."""
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
        while partial.length != self.file.size_bytes:  # an earlier run may have completed it
            problem: Exception = ExportError(
                f"{self.file.name}: the hub ends before all {self.file.size_bytes} bytes came; "
                "run the command again, it goes on from there"
            )
            try:
                self._stream(partial, on_length)
            except (httpx2.TransportError, _WrongRangeError) as error:
                problem = error
            self._refuse_longer(partial)
            if partial.length == self.file.size_bytes:
                return
            failures = failures + 1 if partial.length < furthest + MIN_BYTES else 0
            furthest = max(furthest, partial.length)
            if failures >= MAX_FAILURES:
                raise problem
            if failures:
                time.sleep(self.wait_s * 2 ** (failures - 1))

    def _stream(self, partial: _Partial, on_length: Callable[[int], None]) -> None:
        """Append the bytes of one request."""
        headers = dict(self.headers)
        if partial.length:
            headers["Range"] = f"bytes={partial.length}-"
        with ask(self.url, headers, self.timeout_s) as answer:
            if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                partial.restart()
                return
            answer.raise_for_status()
            if answer.status == HTTPStatus.PARTIAL_CONTENT:
                self._check_range(answer, partial)
            else:
                partial.restart()  # the server ignores the range and sends all of it
            for chunk in answer.chunks:  # written at once, so that an interruption loses nothing
                partial.write(chunk)
                on_length(min(partial.length, self.file.size_bytes))
                if partial.length > self.file.size_bytes:
                    return

    def _check_range(self, answer: Answer, partial: _Partial) -> None:
        found = answer.response.headers.get("Content-Range", "no range")
        size = self.file.size_bytes
        ends = f"/{size}", "/*"
        if not (found.startswith(f"bytes {partial.length}-") and found.endswith(ends)):
            problem = _WrongRangeError(
                f"{self.file.name}: the hub answers with {shown(found)}, needed bytes "
                f"{partial.length}-{size - 1}/{size}; run the command again, it begins anew"
            )
            partial.restart()  # the next request asks for all of it, without a range
            raise problem

    def _refuse_longer(self, partial: _Partial) -> None:
        if partial.length > self.file.size_bytes:
            partial.restart()
            raise ExportError(
                f"{self.file.name}: the hub sends more than the {self.file.size_bytes} bytes it "
                "lists; they were removed, run the command again"
            )


class _WrongRangeError(ExportError):
    """The server sent another range than the requested one."""
