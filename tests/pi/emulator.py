"""Run a command in the arm64 root as if on a Raspberry Pi's processor.

Emulated times say nothing about a device: none is reported.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.pi.root import KEYRING, PROJECT, PYTHON, QEMU, debian_mirror

HERE = Path(__file__).parent
CORES = {"cortex-a76": "Raspberry Pi 5", "cortex-a72": "Raspberry Pi 4"}
CODE = "/opt/code/runtime_py"
BUNDLE = "/bundle"
_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    QEMU: "qemu-user-static",
    "unshare": "util-linux",
    "chroot": "coreutils",
    "apt-get": "apt",
}
_IN_A_NAMESPACE = ("unshare", "--mount", "--propagation", "private")


def why_not() -> str | None:
    """What is missing for an emulated Raspberry Pi; None if nothing is."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return "it needs Linux on x86-64 or aarch64"
    if os.geteuid():
        return "it needs root rights, to unpack and to enter an arm64 root"
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if not KEYRING.is_file():
        missing.append("debian-archive-keyring")
    if missing:
        return f"it needs apt install {' '.join(missing)}"
    if debian_mirror() is None:
        return "apt has no lists of Debian's packages: it needs apt-get update"
    tried = subprocess.run([*_IN_A_NAMESPACE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"this machine gives no mount namespace ({tried.stderr.strip()})"
    return None


@dataclass(frozen=True)
class Pi:
    """An emulated processor over the root, with our code and a bundle in it."""

    core: str
    root: Path
    bundle: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def gemma_run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "runtime_py", *arguments)

    def python(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        binds = (PROJECT / "runtime_py", CODE, self.bundle, BUNDLE)
        inside = (self.root, HERE / "cpuinfo" / self.core, *binds)
        command = (*_IN_A_NAMESPACE, "sh", HERE / "enter.sh", *inside, "--", PYTHON, *arguments)
        return subprocess.run(
            list(map(str, command)),
            env={**self.environment, "QEMU_CPU": self.core},
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
