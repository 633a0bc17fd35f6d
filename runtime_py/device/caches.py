"""The user's cache: where its files are, which to trust, and how to write them."""

import contextlib
import functools
import logging
import os
import platform
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_logger = logging.getLogger(__name__)
_MAX_BYTES = 1 << 20  # of a file of ours: nobody makes us read more
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def user_cache(part: str) -> Path:
    """Our folder in the user's cache directory, by the platform's convention.

    Without a home directory, a path where no folder can be made.
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
    # XDG: ignore a relative path, which would mean another cache in every working directory.
    return chosen if chosen.is_absolute() else Path.home() / ".cache"


def private_folder(folder: Path) -> Path | None:
    """Make a folder of the cache.

    Returns:
        None if it cannot be made or read; None, after one warning, if others can write to it.
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
    """Why another user can change what is in a folder; None if no other can."""
    if sys.platform == "win32":  # access lists keep a user's profile private
        return None
    status = folder.stat()
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}"
    return "others can write to it" if status.st_mode & _OTHERS_WRITE else None


@contextlib.contextmanager
def open_own(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file of this user's, without following a link or waiting for a pipe.

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


def read_own(path: Path) -> bytes:
    """What `write_beside` wrote; empty if there is nothing, or others could have written it."""
    if path.exists() and private_folder(path.parent) is not None:
        with contextlib.suppress(OSError), open_own(path) as file:
            return file.read(_MAX_BYTES)
    return b""


def write_beside(path: Path, text: str) -> None:
    """Write a file of the cache if possible: without the file, only time is lost."""
    if private_folder(path.parent) is not None:
        with contextlib.suppress(OSError):
            write_whole(path, text)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that other processes see all of it or nothing.

    Raises:
        OSError: if it cannot be written; then the old file is still there.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def processor() -> str:
    """What tells this machine's processor from others that may share the home directory."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return platform.machine() + line
    return platform.machine() + platform.processor()
