"""Where XNNPACK keeps the weights that it repacked for this processor.

Without a cache, every signature repacks all weights into its own memory; with one, they are packed
once into a file that is mapped. XNNPACK finds a weight in the file by its index and does not check
the content, so the file's name contains a digest of the model, and a checksum lies beside it.
XNNPACK aborts the process if the disk fills while it writes, so free space is checked first. The
files can be deleted at any time.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from runtime_py.backends.installed import version
from runtime_py.device.caches import open_own, processor
from runtime_py.device.sealed_file import discard, is_intact, publish
from runtime_py.formats.litertlm import Section
from runtime_py.terminal.printable import one_line

if sys.platform != "win32":
    import fcntl

_logger = logging.getLogger(__name__)
# XNNPACK's name for an anonymous file, which the signatures share and nothing else can read.
UNNAMED = ":memory"
_SPARE_BYTES = 64 << 20
_STALE_S = 24 * 3600.0
_HEAD_BYTES = 1 << 20
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096


@dataclass
class WeightCache:
    """A value for CpuOptions.xnnpack_weight_cache_path, and the steps before and after loading."""

    path: str
    final: Path | None = None  # set while the file has a temporary name
    descriptor: int | None = None  # of the anonymous file at `path`, or of a lock

    def begin(self) -> None:
        """Make the empty file that XNNPACK writes, locked while the model is loaded."""
        if self.final is None or sys.platform == "win32":  # Windows cannot rename an open file
            return
        with contextlib.suppress(OSError):  # some network file systems have no locks
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def commit(self) -> str | None:
        """Give a freshly written file its name and checksum, and remove those that it replaces.

        Returns:
            The path of weights that were packed just now; None if they were packed before, or only
            the model that packed them can read them.
        """
        if self.final is None:
            return None if self.descriptor is None else self.path
        written = Path(self.path)
        try:
            descriptor = os.open(written, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            publish(written, self.final)
        except OSError:
            self.discard()
            return None  # the model keeps its open file; the next load packs again
        place = self.final.name.rpartition("-")[0]
        for other in self.final.parent.glob(f"{place}-*.xnnpack"):
            if other != self.final:
                discard(other)
        return self.final.as_posix()

    def close(self) -> None:
        """Call this when the model is closed."""
        if self.descriptor is not None:
            os.close(self.descriptor)

    def discard(self) -> None:
        """Remove what was written for a model that did not load."""
        if self.final is not None:
            _remove(Path(self.path))
            discard(self.final)


def in_memory() -> WeightCache:
    """A cache that lasts as long as the model."""
    if hasattr(os, "memfd_create"):  # Linux
        with contextlib.suppress(OSError):
            descriptor = os.memfd_create("packed weights")
            path = f"/proc/self/fd/{descriptor}"
            if os.path.exists(path):
                return WeightCache(path, descriptor=descriptor)
            os.close(descriptor)
    return WeightCache(UNNAMED)


def weight_cache(directory: Path | None, bundle: Path, section: Section) -> WeightCache:
    """The cache of one model section: an existing file, a new one, or memory if there is no room.

    Args:
        directory: None: in memory.
        bundle: the .litertlm.
        section: the model's.
    """
    if directory is None:
        return in_memory()
    try:
        final = directory / _file_name(bundle, section)
        if not _fits_toml(final.as_posix()):
            return in_memory()
        _remove_abandoned(directory)
        if is_intact(final):
            return WeightCache(final.as_posix())
        if os.path.lexists(final):
            _logger.debug("%s: not what was written; packing the weights again", final)
            discard(final)
        free_bytes = shutil.disk_usage(directory).free
        can_write = os.access(directory, os.W_OK)
        if can_write and free_bytes >= section.size_bytes * 5 // 4 + _SPARE_BYTES:
            writing = final.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}.tmp")
            return WeightCache(writing.as_posix(), final)
    except OSError as error:
        _logger.debug("%s: %s", directory, error)
    return in_memory()


def _fits_toml(path: str) -> bool:
    """LiteRT puts the path into UTF-8 TOML without escaping it."""
    return one_line(path) == path and not set('"\\') & set(path)


def _file_name(bundle: Path, section: Section) -> str:
    place = hashlib.sha256(str(bundle.resolve()).encode()).hexdigest()[:12]
    return f"{place}-{section.model_type}-{_digest(bundle, section)}.xnnpack"


def _digest(bundle: Path, section: Section) -> str:
    """Changes with the file, the runtime and the processor; reads about 1.3 MB at most."""
    status = bundle.stat()
    about = f"{section} {status.st_size} {status.st_mtime_ns} {processor()}"
    digest = hashlib.sha256(f"{about} {version('ai-edge-litert')}".encode())
    with bundle.open("rb") as file:
        file.seek(section.begin)
        digest.update(file.read(min(_HEAD_BYTES, section.size_bytes)))
        for index in range(_NUM_SAMPLES):
            file.seek(section.begin + section.size_bytes * index // _NUM_SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:24]


def _remove_abandoned(directory: Path) -> None:
    for path in directory.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _STALE_S or not _is_locked(path):
                path.unlink()


def _is_locked(path: Path) -> bool:
    """Whether the process that writes it is still alive."""
    if sys.platform == "win32":
        return True
    with open_own(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
