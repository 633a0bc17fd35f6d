"""Refuse to export with a release of a library that the export was not proved with.

The export reaches into private parts of its libraries, so another release may go wrong silently.
The pins stand once, in pyproject.toml.
"""

from collections.abc import Iterable

from packaging.requirements import Requirement

from exporter.errors import ExportError
from runtime_py.backends.installed import requirement, version


def check_pins(purpose: str, packages: Iterable[str]) -> None:
    """Raise ExportError unless each installed package is of a release that the project pins.

    Args:
        purpose: what the packages are for, "lowering to ONNX".
        packages: distribution names, each pinned in pyproject.toml.
    """
    for package in packages:
        pin = Requirement(requirement(package))
        found = version(package)
        if found is None or not pin.specifier.contains(found, prereleases=True):
            raise ExportError(
                f"{purpose}: found {package} {found or 'none'}, needed {pin.specifier}; "
                f"pip install '{pin.name}{pin.specifier}'"
            )
