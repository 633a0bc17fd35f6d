"""Where files go that make the next start quicker, what they depend on, and which may be used."""

import contextlib
import functools
import logging
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_logger = logging.getLogger(__name__)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def user_cache(part: str) -> Path:
    """Our folder in the user's cache directory, by the platform's convention.

    One that cannot be made where this user has no home directory.
    """
    try:
        return _base() / "gemma-export" / part
    except RuntimeError:
        return Path(os.devnull) / part


def _base() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The convention wants a relative one ignored: it would be another in every folder.
    return chosen if chosen.is_absolute() else Path.home() / ".cache"


def private_folder(folder: Path) -> Path | None:
    """Make a folder of the cache; None, after one warning, where others can write to it.

    None without a warning where it can be neither made nor read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        why = not_private(folder)
    except OSError as error:
        _logger.debug("%s: %s", folder, error)
        return None
    if why is None:
        return folder
    _warn(f"{folder}: {why}; nothing of it is used, which makes starting slower; chmod 700 it")
    return None


def not_private(folder: Path) -> str | None:
    """Why others than this user can change what is in a folder; None if they cannot."""
    if sys.platform == "win32":  # a user's profile is private by its access list
        return None
    status = folder.stat()
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}"
    return "others can write to it" if status.st_mode & _OTHERS_WRITE else None


@contextlib.contextmanager
def open_own(path: Path) -> Iterator[BinaryIO]:
    """Read a regular file of this user's; a symbolic link is not followed, a pipe not waited for.

    Raises:
        OSError: if it is anything else.
    """
    flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # as far as the platform has them
    descriptor = os.open(path, sum((getattr(os, name, 0) for name in flags), os.O_RDONLY))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path}: not a regular file")
        if sys.platform != "win32" and status.st_uid != os.geteuid():
            raise OSError(f"{path}: belongs to user {status.st_uid}")
        yield file


@functools.cache
def _warn(message: str) -> None:
    _logger.warning("%s", message)


def write_beside(path: Path, text: str) -> None:
    """Beside, then renamed: another process sees all of it or nothing. Failing costs time only."""
    if private_folder(path.parent) is None:
        return
    with contextlib.suppress(OSError):
        handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


def processor() -> str:
    """A home directory may be shared by machines that differ."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return platform.machine() + line
    return platform.machine() + platform.processor()
