"""Rebuild the shims in prebuilt/, after the sources or the pinned executorch have changed.

For the machine's own architecture against the installed executorch, for the other one against its
wheel of the same release, which is downloaded. Debian: apt install g++ g++-aarch64-linux-gnu. Take
an old one, 12 at most: a shim must not ask for a newer glibc than ExecuTorch's wheels do.

    python -m runtime_py.backends.executorch.shim.build
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from runtime_py.backends.executorch.shim import prebuilt
from runtime_py.backends.executorch.shim.compiler import BuildError, compile_shim
from runtime_py.backends.executorch.shim.installed import (
    PINNED_VERSION,
    Installed,
    find_executorch,
)

_WHEEL_PYTHON = "3.11"  # any that executorch has a wheel for: the headers are the same


def build(folder: Path) -> None:
    """Write the shims of all architectures, and a record of their sources, into a folder.

    Raises:
        BuildError: if executorch or a compiler is missing, or a wheel cannot be downloaded.
    """
    installed = find_executorch()
    if installed is None or installed.version != PINNED_VERSION:
        found = installed.version if installed else "none"
        raise BuildError(
            f"executorch installed: {found}, needed: {PINNED_VERSION}; "
            f"pip install --no-deps executorch=={PINNED_VERSION}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for architecture in prebuilt.ARCHITECTURES:
        output = folder / prebuilt.shim_name(architecture)
        compiler = f"{architecture}-linux-gnu-g++"
        if architecture == platform.machine():
            compile_shim(installed, output, compiler)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            other = _download(installed.version, architecture, Path(scratch))
            compile_shim(other, output, compiler)
    prebuilt.write_made_from(folder, installed.version)


def _download(version: str, architecture: str, folder: Path) -> Installed:
    wanted = f"executorch=={version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", _WHEEL_PYTHON]
    command += ["--platform", f"manylinux_2_28_{architecture}", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("executorch-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise BuildError(f"{wanted} for {architecture} does not download ({reason})")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(folder)
    return Installed(folder / "executorch", version)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=prebuilt.FOLDER)
    folder = parser.parse_args().output
    try:
        build(folder)
    except (BuildError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for architecture in prebuilt.ARCHITECTURES:
        path = folder / prebuilt.shim_name(architecture)
        sys.stdout.write(f"{path}  {path.stat().st_size / 1e3:.0f} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
