"""Large files of the user's cache that are used only if they hold what was written.

Beside each lies a checksum, with the inode, size and change times of the file when it was last
compared. It is compared again (about a second per gigabyte) only if one of these differs: damage by
any program is found, and an untouched file costs nothing. Damage to the medium that the system does
not report is not found.
"""

import contextlib
import json
import os
import zlib
from functools import partial
from pathlib import Path
from typing import BinaryIO

from runtime_py.device.caches import open_own, write_whole
from runtime_py.formats.strict_json import read_object

_BLOCK_BYTES = 4 << 20
_MOST_BYTES = 4096  # of the file beside
SUFFIX = ".sum"


def publish(written: Path, final: Path) -> None:
    """Give a file that is complete its name, and keep its checksum.

    Raises:
        OSError: if it cannot be read, or its folder cannot be written to.
    """
    with open_own(written) as file:
        checksum = _checksum(file)
        _write(final, _identity(file), checksum)  # first: others may look at once
        written.replace(final)
        _write(final, _identity(file), checksum)  # the new name is a change, too


def is_intact(path: Path) -> bool:
    """Whether `path` is a file of this user's that was published here, and is as it was then."""
    try:
        with open_own(path) as file, open_own(_beside(path)) as kept:
            identity = _identity(file)
            values = read_object(kept.read(_MOST_BYTES))
            if values["identity"] == identity:
                return True
            if values["crc32"] != _checksum(file):
                return False
    except (OSError, ValueError, LookupError):
        return False
    with contextlib.suppress(OSError):  # else the next time compares it again
        _write(path, identity, values["crc32"])
    return True


def discard(path: Path) -> None:
    """Remove the file, whatever it is, and its checksum."""
    for each in (path, _beside(path)):
        with contextlib.suppress(OSError):
            each.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _identity(file: BinaryIO) -> list[int]:
    status = os.fstat(file.fileno())
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _checksum(file: BinaryIO) -> int:
    checksum = 0
    for block in iter(partial(file.read, _BLOCK_BYTES), b""):
        checksum = zlib.crc32(block, checksum)
    return checksum


def _write(path: Path, identity: list[int], checksum: int) -> None:
    write_whole(_beside(path), json.dumps({"identity": identity, "crc32": checksum}))
