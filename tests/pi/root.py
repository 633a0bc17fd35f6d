"""An arm64 Debian root with everything that gemma-run needs, unpacked and never booted.

Debian's packages come from the mirror that this machine's apt uses, the wheels from where its pip
finds them, for aarch64 and of the very versions that are installed here: both sides of a comparison
run the same release.
"""

import hashlib
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2]
SUITE = "bookworm"  # what Raspberry Pi OS is made from
PACKAGES = ("python3", "libstdc++6", "libgomp1", "dash")
NEWEST_GLIBC = 36  # 2.36, the suite's
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
QEMU = "qemu-aarch64-static"
PYTHON = "/usr/bin/emulated-python3"
# The processor that runs this script is the emulated one; what it starts is emulated too.
_PYTHON_SCRIPT = f"""#!/usr/bin/{QEMU} /bin/dash
exec /usr/bin/{QEMU} -0 {PYTHON} /usr/bin/python3 "$@"
"""
# What a device installs without its dependencies: they are torch's world, or nothing.
ALONE = ("executorch", "litert-lm-api")


def requirements() -> tuple[list[str], list[str]]:
    """What pyproject.toml asks for on a device: with dependencies, and without."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["litert"], *extras["onnx"]]
    alone = [
        line for line in (*extras["executorch"], *extras["dev"]) if Requirement(line).name in ALONE
    ]
    assert len(alone) == len(ALONE), alone
    return asked, alone


def installed() -> list[str]:
    """The versions of this environment, as constraints for pip."""
    found = {dist.name: dist.version for dist in metadata.distributions()}
    found.pop("gemma-export", None)
    return sorted(f"{name}=={version}" for name, version in found.items())


def build_root(folder: Path) -> Path:
    """Make the root in a folder named after what it is made from, unless it is there.

    Raises:
        subprocess.CalledProcessError: with what mmdebstrap or pip said on stderr.
    """
    root = folder / f"root-{_digest()}"
    if root.is_dir():
        return root
    making = root.with_name("making")
    for old in (making, *folder.glob("root-*")):
        shutil.rmtree(old, ignore_errors=True)
    making.mkdir(parents=True)
    _unpack_debian(making)
    _install_wheels(making)
    _add_emulator(making)
    making.rename(root)
    return root


def _digest() -> str:
    made_from = (SUITE, PACKAGES, _PYTHON_SCRIPT, requirements(), installed())
    digest = hashlib.sha256(repr(made_from).encode())
    return digest.hexdigest()[:16]


def debian_mirror() -> str | None:
    """Where this machine's apt has Debian's packages from; None if it has no lists of any."""
    wanted = ("Identifier: Packages", "Origin: Debian", "Label: Debian")
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return found[0] if found else None


def _unpack_debian(root: Path) -> None:
    line = f"deb [signed-by={KEYRING}] {debian_mirror()} {SUITE} main"
    options = ("--quiet", "--mode=root", "--architectures=arm64", "--variant=extract")
    include = f"--include={','.join(PACKAGES)}"
    _run("mmdebstrap", *options, include, SUITE, root, line)


def _install_wheels(root: Path) -> None:
    python = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    constraints = root / "tmp-constraints.txt"
    constraints.write_text("\n".join(installed()))
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(NEWEST_GLIBC, 16, -1)]
    where = (
        *("--target", root / "opt/site", "--python-version", python, "--implementation", "cp"),
        *("--only-binary", ":all:", "--constraint", constraints),
        *_each("--platform", [*platforms, "manylinux2014_aarch64"]),
    )
    asked, alone = requirements()
    # Together they would be resolved together; the second call leaves the first one's alone.
    for what in (asked, ["--no-deps", *alone]):
        _run(sys.executable, "-m", "pip", "install", "--quiet", *where, *what)
    constraints.unlink()
    if sys.version_info[:2] == tuple(map(int, python.split("."))):
        # Debian compiles its modules when it configures packages, which is not done here.
        _run(sys.executable, "-m", "compileall", "-q", root / "usr/lib" / f"python{python}")


def _add_emulator(root: Path) -> None:
    emulator = shutil.which(QEMU)
    assert emulator
    shutil.copy(emulator, root / "usr/bin" / QEMU)
    script = root / PYTHON.lstrip("/")
    script.write_text(_PYTHON_SCRIPT)
    script.chmod(0o755)
    for name in ("proc", "sys", "tmp", "root"):
        (root / name).mkdir(exist_ok=True)


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [part for value in values for part in (option, value)]


def _run(*command: object) -> None:
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        name = Path(str(command[0])).name
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
