"""Reader of untrusted .npz files: the plain arrays that numpy.savez writes, and nothing else.

numpy's own reader trusts an array's header: it allocates any shape before it looks for the numbers,
obeys every flag of a ZIP, and raises whatever zipfile raises.
"""

import math
import re
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_BYTES = 1 << 28  # of all arrays together
_MAX_MEMBERS = 64
_FLAGS = 1 << 11  # that a member may have: its name is UTF-8
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([^']{1,9})', 'fortran_order': False, 'shape': \(([0-9, ]{0,90})\),? ?\}[ \n]*"
)


def read_arrays(
    path: Path, types: Mapping[str, str], optional: Collection[str] = ()
) -> dict[str, npt.NDArray[Any]]:
    """Read arrays by name; the file's other members are ignored.

    Args:
        path: of the file.
        types: numpy's name of each array's type, little-endian.
        optional: the arrays that may be missing.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged, compressed, too large, or lacks an array of that type.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, types, optional)
            return {
                name: _array(archive.read(info), name, types[name])
                for name, info in members.items()
            }
    # zipfile raises these for damaged, encrypted and unknown members.
    except (zipfile.BadZipFile, RuntimeError, EOFError, struct.error, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _members(
    archive: zipfile.ZipFile, types: Mapping[str, str], optional: Collection[str]
) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if len(infos) > _MAX_MEMBERS or len(set(names)) < len(names):
        raise ValueError("the same array twice, or too many")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ~_FLAGS:
            raise ValueError("compressed members, or encrypted ones")
        if info.file_size != info.compress_size:
            raise ValueError("sizes that do not agree")
    if sum(info.file_size for info in infos) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
    found = {info.filename.removesuffix(".npy"): info for info in infos}
    for name in types:
        if name not in found and name not in optional:
            raise ValueError(f"no {name}")
    return {name: found[name] for name in types if name in found}


def _array(data: bytes, name: str, dtype: str) -> npt.NDArray[Any]:
    """One .npy file, version 1.0, in C order."""
    end = 10 + int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10:end])
    if data[:8] != _MAGIC or header is None or header[1].decode("latin-1") != dtype:
        raise ValueError(f"{name} is no array of {dtype}")
    sizes = [word for word in header[2].decode().replace(" ", "").split(",") if word]
    shape = tuple(map(int, sizes))
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size != len(data) - end:
        raise ValueError(f"{name} has {len(data) - end} bytes, its shape asks for {size}")
    return np.frombuffer(data, dtype, offset=end).reshape(shape)
