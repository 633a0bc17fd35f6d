"""Which runtimes are installed, and the command that installs one."""

import importlib.util
import tomllib
from importlib import metadata
from pathlib import Path
from shlex import quote

from runtime_py.bundle.manifest import RuntimeName
from runtime_py.errors import RunError

US = "gemma-export"
OFFICIAL = "official"
_ROOT = Path(__file__).parents[2]
# What each runtime needs: the import name here, the distribution's name below.
PACKAGES: dict[RuntimeName, str] = {
    "litert": "ai_edge_litert",
    "executorch": "executorch",
    "onnx": "onnxruntime",
}
_MODULES = {str(name): module for name, module in PACKAGES.items()} | {OFFICIAL: "litert_lm"}
DISTRIBUTIONS = {
    "litert": "ai-edge-litert",
    "executorch": "executorch",
    "onnx": "onnxruntime",
    OFFICIAL: "litert-lm-api",
}
# Releases that the tests run with. LiteRT's C API and ExecuTorch's libraries may change with any
# other, so it is refused. onnxruntime's API is stable, but our graphs rely on the order in which it
# adds numbers: another release gets a warning.
TESTED: dict[RuntimeName, str] = {"litert": "2.3.", "executorch": "1.5.1", "onnx": "1.32."}
# Its dependencies are torch's, and gemma-run needs none of them.
_ALONE = ("executorch",)


def is_installed(name: str) -> bool:
    """Whether a runtime's package is installed; `probe` finds out whether it loads."""
    try:
        spec = importlib.util.find_spec(_MODULES[name])
    except ValueError:  # a None in sys.modules hides it
        return False
    # A folder of that name in the working directory is found too, but has no origin. Neither has
    # executorch, which has a distribution instead; onnxruntime's may have another name.
    return spec is not None and (
        spec.origin is not None or version(DISTRIBUTIONS[name]) is not None
    )


def require(name: RuntimeName, bundle: Path) -> None:
    """Refuse to run a bundle with a runtime that is not installed.

    Raises:
        RunError: with the command that installs it.
    """
    if not is_installed(name):
        others = [other for other in PACKAGES if is_installed(other)]
        here = f"; installed is {', '.join(others)}" if others else ""
        raise RunError(
            f"{bundle}: to be run with {name}, which is not installed{here}; "
            f"{install_command(name)}"
        )


def version(distribution: str) -> str | None:
    """The installed version; None if the distribution is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def our_version() -> str:
    """The installed version of this package."""
    return version(US) or "of a checkout that is not installed"


def install_command(name: str) -> str:
    """The command that installs a runtime, at the release that this gemma-run was made for.

    It names the runtime's own package, because the commands that install our extras differ between
    a checkout and a wheel.
    """
    package = DISTRIBUTIONS[name]
    alone = "--no-deps " if package in _ALONE else ""
    return f"pip install {alone}'{requirement(package)}'"


def install_extra(extra: str) -> str:
    """The command that installs all of one of our extras.

    An installed package is named by its name; a checkout that is not installed, by its folder.
    """
    ours = US if version(US) else str(_ROOT)
    return f"pip install {quote(f'{ours}[{extra}]')}"


def requirement(package: str) -> str:
    """A package's pinned requirement, from our metadata or, in a checkout, from pyproject.toml."""
    return next((line for line in _requirements() if _name(line) == package), package)


def _requirements() -> list[str]:
    try:
        return [line.partition(";")[0].strip() for line in metadata.requires(US) or []]
    except metadata.PackageNotFoundError:
        pass
    try:
        text = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
        extras: dict[str, list[str]] = tomllib.loads(text)["project"]["optional-dependencies"]
    except (OSError, ValueError, LookupError):
        return []
    return [line for extra in extras.values() for line in extra]


def _name(line: str) -> str:
    """The distribution: "ai-edge-litert" for "ai-edge-litert==2.3.0"."""
    end = next((i for i, c in enumerate(line) if not (c.isalnum() or c in "-_.")), None)
    return line[:end]
