"""The package's compiled shims, one per architecture, and a record of their sources."""

import hashlib
import platform
import struct
import sys
from pathlib import Path

from runtime_py.backends.executorch.shim.compiler import source_digest

ARCHITECTURES = ("aarch64", "x86_64")
FOLDER = Path(__file__).parent / "prebuilt"
# A 32-bit Raspberry Pi OS also reports aarch64.
_NUM_BITS = 8 * struct.calcsize("P")
_MADE_FROM = "made_from.txt"  # each line a key and a value


def shim_name(architecture: str) -> str:
    return f"libgemma_export_executorch-{architecture}.so"


def has_wheels() -> bool:
    """Whether ExecuTorch's Linux wheels and our shims support this machine."""
    is_glibc = platform.libc_ver()[0] == "glibc"
    is_known = platform.machine() in ARCHITECTURES and _NUM_BITS == 64
    return sys.platform == "linux" and is_glibc and is_known


def describe_machine() -> str:
    libc = platform.libc_ver()[0] or "no glibc"
    return f"{platform.system()} {platform.machine()} with {libc} and {_NUM_BITS}-bit Python"


def find_prebuilt(executorch_version: str, folder: Path = FOLDER) -> Path | None:
    """The shim for this machine and release; None unless it was built from these sources."""
    if not has_wheels():
        return None
    path = folder / shim_name(platform.machine())
    try:
        made_from = read_made_from(folder)
        content = path.read_bytes()
    except OSError:
        return None
    needed = what_it_is_made_from(executorch_version) | {path.name: _digest(content)}
    return path if needed.items() <= made_from.items() else None


def what_it_is_made_from(executorch_version: str) -> dict[str, str]:
    return {"executorch": executorch_version, "sources": source_digest()}


def read_made_from(folder: Path = FOLDER) -> dict[str, str]:
    lines = (folder / _MADE_FROM).read_text(encoding="utf-8").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def write_made_from(folder: Path, executorch_version: str) -> None:
    """Record the sources and the digests of the shims in a folder."""
    made_from = what_it_is_made_from(executorch_version)
    for architecture in ARCHITECTURES:
        path = folder / shim_name(architecture)
        made_from[path.name] = _digest(path.read_bytes())
    text = "".join(f"{key} {value}\n" for key, value in made_from.items())
    (folder / _MADE_FROM).write_text(text, encoding="utf-8")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
