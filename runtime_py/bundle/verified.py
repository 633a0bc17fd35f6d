"""Compare a bundle's files with the manifest's checksums, and remember which were right.

Reading gigabytes takes seconds, and the files rarely change: one whose path, inode, times and size
are unchanged is not read again.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from runtime_py.bundle.manifest import FileEntry, bundle_path, checksum
from runtime_py.device.caches import read_own, user_cache, write_beside
from runtime_py.errors import RunError
from runtime_py.formats.strict_json import read_object

Bar = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
Identity = tuple[int | str, ...]  # a state of a file: inode, size, times; and its checksum

MAX_FILES = 512  # the oldest entries are dropped
_MB = 1_000_000
_SHOWN_MB = 100  # less is read before a bar would be seen


@contextmanager
def no_bar(_title: str, _total: int, _unit: str) -> Iterator[Callable[[int], None]]:
    """A bar that shows nothing."""
    yield lambda _done: None


def verify_files(
    folder: Path, files: Mapping[str, FileEntry], bar: Bar = no_bar, *, in_full: bool = False
) -> None:
    """Refuse files of a bundle whose checksum is not the manifest's.

    Args:
        folder: of the bundle.
        files: by name; all of them exist.
        bar: shows the megabytes read, if they are many.
        in_full: read every file, even those that were compared before and are unchanged.

    Raises:
        RunError: naming the first file that differs.
    """
    known = {} if in_full else _recall()
    pending: dict[str, Identity] = {}
    for name, entry in files.items():
        path = bundle_path(folder, name)
        found = _identity(path, entry)
        if known.get(str(path.resolve())) != found:
            pending[name] = found
    if not pending:
        return
    total = sum(files[name].size_bytes for name in pending) // _MB
    read: dict[str, Identity] = {}
    with (bar if total >= _SHOWN_MB else no_bar)("verify", total, "MB") as progress:
        done = 0
        for name, before in pending.items():
            path, entry = bundle_path(folder, name), files[name]
            _compare(path, entry, partial(_tell, progress, done))
            done += entry.size_bytes
            if _identity(path, entry) == before:  # unchanged while it was read
                read[str(path.resolve())] = before
    _remember(read)


def _tell(progress: Callable[[int], None], before: int, read: int) -> None:
    progress((before + read) // _MB)


def _compare(path: Path, entry: FileEntry, progress: Callable[[int], None]) -> None:
    try:
        found = checksum(path, progress)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}; copy the file again") from None
    if found != entry.sha256:
        raise RunError(
            f"{path}: sha256 {found[:12]}…, the manifest says {entry.sha256[:12]}…; "
            "the file was altered, copy it again"
        )


def _identity(path: Path, entry: FileEntry) -> Identity:
    try:
        found = path.stat()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}; copy the file again") from None
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return (found.st_dev, found.st_ino, found.st_size, *times, entry.sha256)


def _place() -> Path:
    return user_cache("verified") / "files.json"


def _recall() -> dict[str, Identity]:
    """What `_remember` wrote, by resolved path; empty if there is none or it is damaged."""
    values: dict[str, object] = {}
    with contextlib.suppress(ValueError):
        values = read_object(read_own(_place()))
    return {path: tuple(found) for path, found in values.items() if isinstance(found, list)}


def _remember(found: Mapping[str, Identity]) -> None:
    known = {path: value for path, value in _recall().items() if path not in found}
    kept = list({**known, **found}.items())[-MAX_FILES:]
    write_beside(_place(), json.dumps(dict(kept)))
