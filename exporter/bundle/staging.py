"""Make a bundle beside its final place and move it there in one step.

However the export ends, the place holds the old bundle or the new one, complete. The staging folder
beside it is locked while its export lives. When the export dies, the kernel releases the lock, and
the next export to the same place removes the folder.
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from exporter.bundle.output import check_output
from exporter.errors import ExportError

_NO_ROOM_BYTES = 1 << 20
_LEFT = re.compile(
    r"(?P<stem>\.(?P<name>.+)\.gemma-export-\d+-[0-9a-f]{8})\.(partial|old)", re.DOTALL
)
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # the file system lacks a feature
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux


@contextmanager
def staged(output: Path, overwrite: bool, sources: Sequence[Path] = ()) -> Iterator[Path]:
    """A folder beside `output` that replaces it when the block ends, or vanishes if it fails.

    Args:
        output: the bundle to make; missing parents are made too.
        overwrite: whether an existing bundle is replaced.
        sources: files and folders that the block reads.

    Raises:
        ExportError: as check_output does, or if the disk is full or fails.
    """
    remove_left(output)
    place = check_output(output, overwrite, sources)
    stage = _Stage(place)
    try:
        try:
            try:
                stage.create()
            except OSError as error:
                raise ExportError(
                    f"{output}: {error.filename}: {error.strerror}; choose another --output"
                ) from None
            yield stage.folder
            _flush(stage.folder)
            if check_output(output, overwrite, sources) != place:
                raise ExportError(f"{output}: it leads elsewhere now than it did; export again")
            stage.publish()
        except OSError as error:
            raise _full(stage, output, error) or ExportError(
                f"{error.filename or output}: {error.strerror or error}; nothing was written"
            ) from error
        except ExportError:
            raise
        except Exception as error:
            # Not every tool reports a full disk: some fail later, on the file that they could not
            # write.
            if full := _full(stage, output, error):
                raise full from error
            raise
        finally:
            stage.settle()
    finally:
        stage.settle()  # a signal may have ended the first


def remove_left(output: Path) -> None:
    """Remove what dead exports to the same place left; restore a bundle that they had put aside."""
    with suppress(OSError):
        parent = Path(os.path.realpath(output)).parent
        found = [match for name in os.listdir(parent) if (match := _LEFT.fullmatch(name))]
        for match in found:
            _remove_dead(parent / f"{match['stem']}.partial", parent / match["name"])


def _remove_dead(folder: Path, place: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:  # its export died after the new bundle was in place
        _settle(folder, place)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _settle(folder, place)
    except OSError:
        pass  # it lives, or its file system has no locks to tell
    finally:
        os.close(lock)


class _Stage:
    """A folder in which a bundle is made.

    Args:
        place: where the bundle goes.
    """

    def __init__(self, place: Path) -> None:
        name = f".{place.name}.gemma-export-{os.getpid()}-{secrets.token_hex(4)}.partial"
        self.place, self.folder = place, place.parent / name
        parents = (place.parent, *place.parent.parents)
        self._new_parents = [folder for folder in parents if not folder.exists()]
        self._lock: int | None = None

    def create(self) -> None:
        """Make the folder, locked."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        while True:  # before it is locked, another export may remove it as a dead one's
            self.folder.mkdir()
            with suppress(FileNotFoundError):
                self._lock = os.open(self.folder, os.O_RDONLY)
                with suppress(OSError):  # without locks, nobody takes it for a dead one's
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
                if self.folder.exists():
                    return

    def publish(self) -> None:
        """Put the new bundle in place, and the old one into the staging folder."""
        if not self.place.exists():
            self.folder.rename(self.place)
        elif not _exchange(self.folder, self.place):
            self.place.rename(_put_aside(self.folder))
            self.folder.rename(self.place)
        _sync(self.place.parent)

    def settle(self) -> None:
        """Remove everything but the bundle in place, old or new."""
        _settle(self.folder, self.place)
        for folder in self._new_parents:
            with suppress(OSError):  # not empty: the bundle is there
                folder.rmdir()
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)


def _put_aside(folder: Path) -> Path:
    return folder.with_suffix(".old")


def _settle(folder: Path, place: Path) -> None:
    old = _put_aside(folder)
    if old.exists() and not place.exists():
        old.rename(place)
    for rest in (folder, old):
        shutil.rmtree(rest, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders' names in one step; False if the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )
    if renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _flush(folder: Path) -> None:
    """Flush everything to the disk, so that a published bundle survives a power cut."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(where) / name)
        _sync(Path(where))


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NOT_HERE:  # some file systems sync files only
            raise
    finally:
        os.close(opened)


def _full(stage: _Stage, output: Path, error: Exception) -> ExportError | None:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    with suppress(OSError):
        full = full or shutil.disk_usage(stage.folder).free < _NO_ROOM_BYTES
    if not full:
        return None
    return ExportError(f"{output}: the disk is full; free some room or choose another --output")
