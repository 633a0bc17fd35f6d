"""Lowerings reach into private parts of their tools: each pins the releases it was proved with."""

from collections.abc import Mapping
from importlib import metadata

from exporter.errors import ExportError


def check_versions(runtime: str, pinned: Mapping[str, str]) -> None:
    """Raise ExportError unless the installed tools (package -> version) are the pinned ones."""
    for package, needed in pinned.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            found = "none"
        if found != needed:
            raise ExportError(
                f"lowering to {runtime}: found {package} {found}, needed {needed}; "
                f"pip install {package}=={needed}"
            )
