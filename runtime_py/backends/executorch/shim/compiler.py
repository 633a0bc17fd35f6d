"""Compile the shim, reproducibly: the same sources and flags give the same bytes."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from runtime_py.backends.executorch.shim.installed import Installed

_SOURCES = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-s")
_LINKER_FLAGS = ("-Wl,--build-id=none", "-lexecutorch", "-lexecutorch_threadpool")
# EXECUTORCH_COMPILE_DEFINITIONS in the wheel's CMake configuration.
DEFINITIONS = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL")


class BuildError(Exception):
    """The shim could not be compiled; the message says why, in one line."""


def source_files() -> list[Path]:
    return sorted(_SOURCES.glob("*.cpp"))


def source_digest() -> str:
    """A digest of the sources and the compiler flags."""
    digest = hashlib.sha256(repr((_FLAGS, _LINKER_FLAGS, DEFINITIONS)).encode())
    for path in sorted(_SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def include_flags(executorch: Installed) -> tuple[str, ...]:
    c10 = executorch.include / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    return ("-isystem", str(executorch.include), "-isystem", str(c10))


def compile_shim(executorch: Installed, output: Path, compiler: str = "g++") -> None:
    """Compile the shim against the headers and libraries of that package.

    The file appears when it is whole, so that processes may compile it at the same time.

    Raises:
        BuildError: without a compiler, or with what the compiler said.
    """
    if shutil.which(compiler) is None:
        raise BuildError(f"no {compiler} on this machine")
    writing = output.with_suffix(f".{os.getpid()}.tmp")
    command = [
        compiler,
        *_FLAGS,
        *(f"-D{name}" for name in DEFINITIONS),
        # Error messages contain the headers' paths, which must not depend on the folder.
        f"-ffile-prefix-map={executorch.include}=include",
        f"-ffile-prefix-map={_SOURCES}=shim",
        *include_flags(executorch),
        *(str(path) for path in source_files()),
        f"-L{executorch.lib}",
        *_LINKER_FLAGS,
        *("-o", str(writing)),
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if "error" in line]
            raise BuildError(lines[0] if lines else f"{compiler} ended with {result.returncode}")
        writing.replace(output)
    finally:
        writing.unlink(missing_ok=True)
