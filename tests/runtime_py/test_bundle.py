"""Which runtime of a bundle is used, when the user says which and when not."""

import importlib.util
import json
from typing import get_args

import pytest

from runtime_py.bundle import BACKENDS, PACKAGES, Bundle
from runtime_py.errors import RunError
from runtime_py.manifest import Manifest, RuntimeName
from tests.runtime_py.bundles import manifest_values


def bundle_of(tmp_path, *runtimes):
    values = manifest_values()
    entry = values["runtimes"]["litert"]
    values["runtimes"] = dict.fromkeys(runtimes, entry)
    return Bundle(tmp_path, Manifest.model_validate(json.loads(json.dumps(values))))


@pytest.fixture
def installed(monkeypatch):
    """Sets which packages can be found."""

    def install(*packages):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in packages or None)

    return install


def test_the_first_installed_runtime_is_the_default(tmp_path, installed):
    bundle = bundle_of(tmp_path, "onnx", "litert", "executorch")
    installed(*PACKAGES.values())
    assert bundle.pick_runtime(None) == "onnx"
    installed(PACKAGES["litert"], PACKAGES["executorch"])
    assert bundle.pick_runtime(None) == "litert"
    installed(PACKAGES["executorch"])
    assert bundle.pick_runtime(None) == "executorch"


def test_with_none_installed_it_is_the_first_whose_error_then_says_what_to_install(
    tmp_path, installed
):
    installed()
    assert bundle_of(tmp_path, "executorch", "litert").pick_runtime(None) == "executorch"


def test_a_wanted_runtime_is_taken_installed_or_not(tmp_path, installed):
    installed()
    assert bundle_of(tmp_path, "litert", "executorch").pick_runtime("executorch") == "executorch"


def test_a_runtime_that_is_not_in_it_is_an_error(tmp_path, installed):
    installed(*PACKAGES.values())
    said = "made for onnx, litert; cannot be run with executorch; export with --runtime executorch"
    with pytest.raises(RunError, match=said):
        bundle_of(tmp_path, "onnx", "litert").pick_runtime("executorch")


def test_every_runtime_that_a_manifest_may_name_can_be_run():
    assert set(BACKENDS) == set(PACKAGES) == set(get_args(RuntimeName))
