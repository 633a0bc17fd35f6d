"""Which runtimes are installed here, and what to type for one that is not."""

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
# Import name and distribution of what each needs.
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
# What it asks for besides is torch's world, of which gemma-run needs nothing.
_ALONE = ("executorch",)


def is_installed(name: str) -> bool:
    """Whether a runtime's package can be imported; whether it loads is another matter."""
    try:
        spec = importlib.util.find_spec(_MODULES[name])
    except ValueError:  # it was hidden from the import system
        return False
    # Any folder of that name where Python was started is found, too, but has no origin; executorch
    # has none either. And onnxruntime's module comes from several distributions.
    return spec is not None and (
        spec.origin is not None or version(DISTRIBUTIONS[name]) is not None
    )


def require(name: RuntimeName, bundle: Path) -> None:
    """Refuse to run a bundle with a runtime that is not installed.

    Raises:
        RunError: with what to type.
    """
    if not is_installed(name):
        others = [other for other in PACKAGES if is_installed(other)]
        here = f"; installed is {', '.join(others)}" if others else ""
        raise RunError(
            f"{bundle}: to be run with {name}, which is not installed{here}; "
            f"{install_command(name)}"
        )


def version(distribution: str) -> str | None:
    """None: not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def our_version() -> str:
    """As it is installed."""
    return version(US) or "of a checkout that is not installed"


def install_command(name: str) -> str:
    """What to type for a runtime, with the release that this gemma-run was made for.

    It names the runtime's own package: an extra of ours can be had in a checkout or from a wheel,
    but not in the same words.
    """
    package = DISTRIBUTIONS[name]
    alone = "--no-deps " if package in _ALONE else ""
    return f"pip install {alone}'{requirement(package)}'"


def install_extra(extra: str) -> str:
    """What to type for all of an extra of ours.

    pip knows what an installed package asks for, and looks no further; a checkout that is not
    installed is named by its folder.
    """
    ours = US if version(US) else str(_ROOT)
    return f"pip install {quote(f'{ours}[{extra}]')}"


def requirement(package: str) -> str:
    """As our own metadata has it, or the project's file in a checkout that is not installed."""
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
    """ai-edge-litert of ai-edge-litert==2.3.0."""
    end = next((i for i, c in enumerate(line) if not (c.isalnum() or c in "-_.")), None)
    return line[:end]
