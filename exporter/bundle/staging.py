"""Make a bundle beside its place and let it take the place in one step.

Whatever ends the export, at the place there is the old bundle or the new one, whole. What is left
beside it is locked as long as its export lives: the kernel gives the lock back when that dies,
and the next export to the same folder removes what nobody holds.
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
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # of what a file system has not
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux


@contextmanager
def staged(output: Path, overwrite: bool, sources: Sequence[Path] = ()) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends; no trace if it fails.

    Args:
        output: the bundle to make; missing parents are made too.
        overwrite: whether a bundle that is there is replaced.
        sources: files and folders that the block reads.

    Raises:
        ExportError: as check_output does, or if the disk is full or refuses.
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
            # Tools that meet a full disk do not all say so: some die of the file they could not
            # write.
            if full := _full(stage, output, error):
                raise full from error
            raise
        finally:
            stage.settle()
    finally:
        stage.settle()  # a signal may have ended the first


def remove_left(output: Path) -> None:
    """Remove what dead exports to the same folder left; bring back what they had put aside."""
    with suppress(OSError):
        parent = Path(os.path.realpath(output)).parent
        found = [match for name in os.listdir(parent) if (match := _LEFT.fullmatch(name))]
        for match in found:
            _remove_dead(parent / f"{match['stem']}.partial", parent / match["name"])


def _remove_dead(folder: Path, place: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:  # its export died when the new bundle was at its place already
        _settle(folder, place)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _settle(folder, place)
    except OSError:
        pass  # it lives, or its file system has no locks and nobody can tell
    finally:
        os.close(lock)


class _Stage:
    """The folder in which a bundle is made.

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
        while True:  # another export may have taken it for a dead one's before it was locked
            self.folder.mkdir()
            with suppress(FileNotFoundError):
                self._lock = os.open(self.folder, os.O_RDONLY)
                with suppress(OSError):  # no locks here: then nobody takes it for a dead one's
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
                if self.folder.exists():
                    return

    def publish(self) -> None:
        """Put the new bundle at its place, and what was there into the folder."""
        if not self.place.exists():
            self.folder.rename(self.place)
        elif not _exchange(self.folder, self.place):
            self.place.rename(_put_aside(self.folder))
            self.folder.rename(self.place)
        _sync(self.place.parent)

    def settle(self) -> None:
        """Remove all but the bundle at its place, old or new."""
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
    """Let two folders change their names in one step; False where the system cannot."""
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
    """Let all of it reach the disk, so that a bundle at its place is whole after a power cut."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(where) / name)
        _sync(Path(where))


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NOT_HERE:  # some file systems know it of files only
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
