"""Compile the shim, and pack it with ExecuTorch's libraries into a wheel for one platform.

The wheel is what a Raspberry Pi installs: no compiler, no torch, none of the forty packages that
executorch's own wheel asks for. It is made on any Debian x86-64 machine, for both platforms:

    pip download --no-deps --only-binary=:all: --python-version 3.11 executorch==1.5.1 \\
        --platform manylinux_2_28_aarch64
    python -m runtime_py.backends.executorch_shim.build executorch-1.5.1-*_aarch64.whl \\
        --compiler aarch64-linux-gnu-g++ --output dist
"""

import argparse
import base64
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "gemma_export_executorch"
SHIM_NAME = "libgemma_export_executorch.so"
# In the order in which they are loaded. None of them links torch.
LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_threadpool.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_kernels_quantized.so",
)
_LINKED = ("executorch", "executorch_threadpool")
_SOURCES = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-s")
# What EXECUTORCH_COMPILE_DEFINITIONS of the wheel's CMake configuration says.
_DEFINITIONS = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL")
_C10 = "runtime/core/portable_type/c10"
_WHEEL_NAME = re.compile(r"executorch-(?P<version>[^-]+)-[^-]+-[^-]+-(?P<platform>[^-]+)\.whl")


class BuildError(Exception):
    """The shim could not be compiled; the message says why."""


def source_digest() -> str:
    """Changes with the sources and with how they are compiled."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h", ".py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_shim(executorch: Path, output: Path, compiler: str = "g++") -> None:
    """Compile the shim against an installed or unpacked executorch package.

    Raises:
        BuildError: without a compiler, or with what the compiler said.
    """
    if shutil.which(compiler) is None:
        raise BuildError(f"no {compiler} on this machine")
    include = executorch / "include"
    command = [
        compiler,
        *_FLAGS,
        *(f"-D{name}" for name in _DEFINITIONS),
        *("-isystem", str(include), "-isystem", str(include / "executorch" / _C10)),
        *(str(path) for path in sorted(_SOURCES.glob("*.cpp"))),
        f"-L{executorch / 'lib'}",
        *(f"-l{name}" for name in _LINKED),
        "-Wl,-rpath,$ORIGIN/lib",
        *("-o", str(output)),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line]
        raise BuildError(lines[0] if lines else f"{compiler} ended with {result.returncode}")


def build_wheel(executorch_wheel: Path, compiler: str, output_dir: Path) -> Path:
    """A wheel with the shim and the libraries of that executorch wheel, for its platform.

    Raises:
        BuildError: if the file is no executorch wheel, or the shim does not compile.
    """
    name = _WHEEL_NAME.fullmatch(executorch_wheel.name)
    if name is None:
        raise BuildError(f"{executorch_wheel.name} is no wheel of executorch")
    version, platform = name["version"], name["platform"]
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(executorch_wheel) as archive:
            archive.extractall(scratch)
        executorch = Path(scratch, "executorch")
        shim = Path(scratch, SHIM_NAME)
        compile_shim(executorch, shim, compiler)
        files = {
            f"{PACKAGE}/__init__.py": f'EXECUTORCH_VERSION = "{version}"\n'.encode(),
            f"{PACKAGE}/{SHIM_NAME}": shim.read_bytes(),
        }
        for library in LIBRARIES:
            files[f"{PACKAGE}/lib/{library}"] = (executorch / "lib" / library).read_bytes()
        for path in Path(scratch).glob("executorch-*.dist-info/**/LICENSE*"):
            files[f"{PACKAGE}/LICENSE-executorch"] = path.read_bytes()
    output_dir.mkdir(parents=True, exist_ok=True)
    return _write_wheel(files, version, platform, output_dir)


def _write_wheel(files: dict[str, bytes], version: str, platform: str, folder: Path) -> Path:
    info = f"{PACKAGE}-{version}.dist-info"
    files |= {
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {PACKAGE.replace('_', '-')}\nVersion: {version}\n"
            "Summary: ExecuTorch's CPU libraries and the C interface gemma-run uses\n"
            "License: BSD-3-Clause (ExecuTorch) and Apache-2.0\nRequires-Python: >=3.11\n"
        ).encode(),
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: gemma-export\nRoot-Is-Purelib: false\n"
            f"Tag: py3-none-{platform}\n"
        ).encode(),
    }
    record = "".join(
        f"{name},sha256={_record_digest(data)},{len(data)}\n" for name, data in files.items()
    )
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{PACKAGE}-{version}-py3-none-{platform}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def _record_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@contextlib.contextmanager
def written_at_once(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends well."""
    writing = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        yield writing
        writing.replace(path)
    finally:
        writing.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("executorch_wheel", type=Path)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--output", type=Path, default=Path("dist"))
    options = parser.parse_args()
    try:
        path = build_wheel(options.executorch_wheel, options.compiler, options.output)
    except (BuildError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}  {path.stat().st_size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
