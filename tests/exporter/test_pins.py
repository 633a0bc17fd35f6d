"""A release of a library that the export was not proved with is refused, before any work."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from exporter.errors import ExportError
from exporter.lower import executorch, litert, onnx
from exporter.lower.executorch import vendor as executorch_vendor
from exporter.lower.litert import vendor as litert_vendor
from exporter.lower.onnx import vendor as onnx_vendor
from exporter.original import vendor as transformers_vendor
from runtime_py.backends.installed import TESTED

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
VENDORS = (transformers_vendor, litert_vendor, executorch_vendor, onnx_vendor)
CHECKS = {
    "transformers": transformers_vendor.check,
    "litert-torch": lambda: litert.LOWERING.check({}),
    "executorch": lambda: executorch.LOWERING.check({}),
    "onnx": lambda: onnx.LOWERING.check({}),
}


@pytest.mark.parametrize("found", ["0.0.1", "99.0", None])
@pytest.mark.parametrize("package", CHECKS)
def test_other_releases_are_refused_with_what_to_type(monkeypatch, package, found):
    def version(_package):
        if found is None:
            raise metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(
        ExportError, match=f"found {package} {found or 'none'}, needed .*pip install '{package}"
    ):
        CHECKS[package]()


def test_every_package_behind_a_fence_has_an_upper_bound():
    extra = [Requirement(line) for line in PYPROJECT["project"]["optional-dependencies"]["export"]]
    base = [Requirement(line) for line in PYPROJECT["project"]["optional-dependencies"]["litert"]]
    bounds = {pin.name: {one.operator for one in pin.specifier} for pin in (*extra, *base)}
    for vendor in VENDORS:
        for package in vendor.PACKAGES:
            assert bounds[package] & {"==", "<"}, package


def test_the_runtimes_that_gemma_run_was_tested_with_are_those_of_the_project():
    extras = PYPROJECT["project"]["optional-dependencies"]
    for runtime, release in TESTED.items():
        (pin,) = [Requirement(line) for line in extras[runtime]]
        assert f"{next(iter(pin.specifier)).version}.".startswith(release)
