"""Which runtime of a bundle is used, when the user says which and when not."""

import importlib.util
import json
import os
import sys
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace
from typing import get_args
from unittest.mock import Mock

import pytest

from runtime_py.backends.installed import DISTRIBUTIONS, PACKAGES, install_command, is_installed
from runtime_py.backends.load import BACKENDS, pick_runtime
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import Manifest, RuntimeName, file_entry
from runtime_py.bundle.reference import read_reference, write_reference
from runtime_py.errors import RunError
from tests.runtime_py.bundles import (
    VOCAB_SIZE,
    manifest_values,
    scripted_reference,
    write_fake_bundle,
)
from tests.runtime_py.scripted_backend import ScriptedBackend


def bundle_of(tmp_path, *runtimes):
    values = manifest_values()
    entry = values["runtimes"]["litert"]
    values["runtimes"] = dict.fromkeys(runtimes, entry)
    return Bundle(tmp_path, Manifest.model_validate(json.loads(json.dumps(values))))


@pytest.fixture
def installed(monkeypatch):
    """Sets which packages can be found."""

    def install(*packages):
        spec = SimpleNamespace(origin="/somewhere")
        found = dict.fromkeys(packages, spec)
        monkeypatch.setattr(importlib.util, "find_spec", found.get)

    return install


def test_the_first_installed_runtime_is_the_default(tmp_path, installed):
    bundle = bundle_of(tmp_path, "onnx", "litert", "executorch")
    installed(*PACKAGES.values())
    assert pick_runtime(bundle, None) == "onnx"
    installed(PACKAGES["litert"], PACKAGES["executorch"])
    assert pick_runtime(bundle, None) == "litert"
    installed(PACKAGES["executorch"])
    assert pick_runtime(bundle, None) == "executorch"


def test_what_is_not_installed_is_said_with_what_is_and_what_to_type(tmp_path, installed):
    installed()
    said = "with onnx, which is not installed; pip install 'onnxruntime>=1.32'$"
    with pytest.raises(RunError, match=said):
        pick_runtime(bundle_of(tmp_path, "onnx", "litert"), None)
    installed(PACKAGES["onnx"])
    for wanted in (None, "litert"):
        bundle = bundle_of(tmp_path, *(["litert", "onnx"] if wanted else ["litert"]))
        said = "with litert, .*; installed is onnx; pip install 'ai-edge-litert==2.3.0'$"
        with pytest.raises(RunError, match=said):
            pick_runtime(bundle, wanted)
    assert bundle.made_for("litert") == "litert"  # to look at it is enough


def test_the_advice_is_the_same_from_a_checkout_that_is_not_installed(monkeypatch):
    with_metadata = [install_command(name) for name in DISTRIBUTIONS]
    monkeypatch.setattr(metadata, "requires", Mock(side_effect=metadata.PackageNotFoundError))
    assert [install_command(name) for name in DISTRIBUTIONS] == with_metadata


def test_a_folder_that_has_a_runtimes_name_is_no_runtime(monkeypatch, tmp_path):
    (tmp_path / "executorch").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(metadata, "version", Mock(side_effect=metadata.PackageNotFoundError))
    assert importlib.util.find_spec("executorch") is not None
    assert not is_installed("executorch")


def test_a_runtime_that_is_not_in_it_is_an_error(tmp_path, installed):
    installed(*PACKAGES.values())
    said = "made for onnx, litert; cannot be run with executorch; export with --runtime executorch"
    with pytest.raises(RunError, match=said):
        pick_runtime(bundle_of(tmp_path, "onnx", "litert"), "executorch")


def test_every_runtime_that_a_manifest_may_name_can_be_run():
    assert set(BACKENDS) == set(PACKAGES) == set(get_args(RuntimeName))


def test_a_path_that_is_not_utf_8_is_refused_before_libraries_see_it(tmp_path):
    folder = write_fake_bundle(tmp_path / "bundle").rename(tmp_path / os.fsdecode(b"bundle\xff"))
    with pytest.raises(RunError, match="its path is not UTF-8"):
        Bundle.open(folder)


def test_a_file_of_a_bundle_stands_for_its_folder(tmp_path):
    folder = write_fake_bundle(tmp_path / "bundle")
    assert Bundle.open(folder / "model.litertlm").folder == folder
    with pytest.raises(RunError, match="no such bundle folder"):
        Bundle.open(folder / "model.pte")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("bos_token_id", 3),
        ("stop_token_ids", []),
        ("special_tokens", {"eos_token": "</s>"}),
        ("chat_template", None),
    ],
)
def test_a_manifest_whose_tokens_are_not_the_recorded_ones_is_refused(tmp_path, name, changed):
    folder = write_fake_bundle(tmp_path / "bundle")
    values = json.loads((folder / "manifest.json").read_text())
    recorded = Manifest.model_validate_json(json.dumps(values)).tokens
    path = folder / "reference.npz"
    reference = scripted_reference(ScriptedBackend(vocab_size=VOCAB_SIZE))
    write_reference(path, replace(reference, tokens=recorded))
    values["files"][path.name] = file_entry(path).model_dump()
    (folder / "manifest.json").write_text(json.dumps(values))
    assert Bundle.open(folder).reference().tokens == recorded
    values["tokens"][name] = changed
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match=f"recorded with {name} .*, the manifest says "):
        Bundle.open(folder).reference()


def test_tokens_that_no_manifest_has_are_no_recording(tmp_path):
    path = write_fake_bundle(tmp_path / "bundle") / "reference.npz"
    reference = scripted_reference(ScriptedBackend(vocab_size=VOCAB_SIZE))
    tokens = Manifest.model_validate_json(json.dumps(manifest_values())).tokens
    write_reference(path, replace(reference, tokens=tokens.model_copy(update={"bos_token_id": -1})))
    with pytest.raises(RunError, match="not a recorded reference"):
        read_reference(path, VOCAB_SIZE, 128)
