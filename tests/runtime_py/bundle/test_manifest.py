import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import (
    Manifest,
    file_entry,
    read_manifest,
    write_manifest,
)
from runtime_py.errors import RunError
from tests.runtime_py.bundles import manifest_values, write_fake_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_fake_bundle(tmp_path / "bundle")


def rewrite(bundle, change):
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def tolerances(values):
    return values["runtimes"]["litert"]["tolerances"]


def test_what_is_written_is_read_again(bundle):
    manifest = read_manifest(bundle)
    write_manifest(bundle, manifest)
    assert read_manifest(bundle) == manifest
    Bundle.open(bundle).verify_checksums()


def test_the_golden_manifest_of_format_1_is_still_read():
    golden = Path(__file__).parents[2] / "golden" / "manifest-1.json"
    manifest = Manifest.model_validate(json.loads(golden.read_text()))
    assert manifest.runtimes["litert"].model == "model.litertlm"


@pytest.mark.parametrize(
    "path", ["../elsewhere", "/etc/passwd", "a/../../b", "..", "", ".", "a\\b", "a\0b"]
)
def test_no_path_leaves_the_bundle(bundle, path):
    rewrite(bundle, lambda values: values.update(reference=path))
    with pytest.raises(RunError, match=r"reference: .*leaves the bundle"):
        read_manifest(bundle)


def test_a_link_that_leads_outside_is_refused(bundle, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes((bundle / "reference.npz").read_bytes())
    (bundle / "reference.npz").unlink()
    (bundle / "reference.npz").symlink_to(outside)
    with pytest.raises(RunError, match="leads outside the bundle"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(format_version=2), "manifest format 2, this runtime reads 1"),
        (lambda v: v.pop("format_version"), "manifest format None"),
        (lambda v: v.update(surprise=1), "surprise: Extra inputs"),
        (lambda v: v.pop("model"), "model: Field required"),
        (lambda v: v["model"].update(vocab_size="4096"), "model.vocab_size: Input should be"),
        (lambda v: v["model"].update(vocab_size=10**12), "model.vocab_size: Input should be"),
        (lambda v: v["model"].update(hidden_size=0), "model.hidden_size: Input should be"),
        (lambda v: v["model"].update(sliding={"layers": [0]}), "model.sliding.window: Field req"),
        (lambda v: v["model"].update(sliding={"window": 0, "layers": [0]}), "sliding.window: Inp"),
        (lambda v: v["model"].update(sliding={"window": 4, "layers": []}), "model.sliding.layers"),
        (lambda v: v["tokens"].update(bos_token_id=300), "token 300 of a vocabulary of 300"),
        (lambda v: v["tokens"].update(stop_token_ids=[1, 999]), "token 999 of a vocabulary of 300"),
        (lambda v: v["tokens"].update(special_tokens={"eos_token": 1}), "special_tokens.eos_token"),
        (lambda v: v["tokens"].update(special_tokens={"a": "x" * 1001}), "special_tokens.a"),
        (lambda v: tolerances(v).update(max_logit_error=float("inf")), "max_logit_error: Input"),
        (lambda v: tolerances(v).update(max_logit_error=11.0), "max_logit_error: Input should be"),
        (lambda v: tolerances(v).update(min_agreement=float("nan")), "min_agreement: Input should"),
        (lambda v: v.update(draft_length=-1), "draft_length: Input should be"),
        (lambda v: v.update(runtimes={}), "no runtime is listed"),
        (lambda v: v["runtimes"].update(cuda=v["runtimes"]["litert"]), "runtimes.cuda"),
        (lambda v: v["files"].pop("reference.npz"), "'reference.npz' is used but not listed"),
        (lambda v: v["files"]["reference.npz"].update(sha256="x"), "sha256: String should match"),
        (lambda v: v["files"]["reference.npz"].update(size_bytes=3), "the manifest says 3"),
    ],
)
def test_refuses_a_manifest_in_one_line(bundle, change, said):
    rewrite(bundle, change)
    with pytest.raises(RunError, match=said) as caught:
        read_manifest(bundle)
    assert "\n" not in str(caught.value)


def test_refuses_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(RunError, match="no such bundle folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no manifest\.json in it"):
        read_manifest(tmp_path)


def test_refuses_a_missing_a_truncated_and_an_altered_file(bundle):
    path = bundle / "model.litertlm"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(RunError, match="truncated or altered"):
        read_manifest(bundle)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunError, match=r"model\.litertlm: sha256"):
        Bundle.open(bundle).verify_checksums()
    path.unlink()
    with pytest.raises(RunError, match="listed in the manifest but missing"):
        read_manifest(bundle)


def test_refuses_a_file_that_this_user_may_not_read(bundle, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "tokenizer.json")
    with pytest.raises(RunError, match=r"tokenizer.json: you may not read it; chmod"):
        read_manifest(bundle)


def test_refuses_a_huge_manifest_before_reading_it(bundle):
    with (bundle / "manifest.json").open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(RunError, match="at most 1 MiB"):
        read_manifest(bundle)


def refusal(folder):
    """What the reader says against a bundle; nothing if it takes it."""
    try:
        read_manifest(folder)
    except RunError as error:
        return str(error)
    return ""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(deadline=None)  # a busy machine is no error
@given(text=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_one_line(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(RunError) as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)


@settings(deadline=None)  # a busy machine is no error
@given(data=st.data())
def test_any_value_in_any_place_gives_one_line_or_a_manifest(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("bundle")
    values = manifest_values()
    parent = values
    while True:
        key = data.draw(st.sampled_from(sorted(parent)))
        if isinstance(parent[key], dict) and parent[key] and data.draw(st.booleans()):
            parent = parent[key]
            continue
        parent[key] = data.draw(json_values)
        break
    (folder / "manifest.json").write_text(json.dumps(values))
    assert "\n" not in refusal(folder)


def test_file_entry_measures_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    entry = file_entry(path)
    assert entry.size_bytes == 3
    assert entry.sha256.startswith("ba7816bf")


def test_the_sources_of_a_bundle_may_be_named():
    golden = Path(__file__).parents[2] / "golden" / "manifest-1.json"
    values = json.loads(golden.read_text())
    assert Manifest.model_validate(values).sources == {}
    sources = {"target": "maker/model@0123abc"}
    assert Manifest.model_validate({**values, "sources": sources}).sources == sources


def test_the_layers_that_slide_may_be_named_and_older_bundles_do_not():
    golden = Path(__file__).parents[2] / "golden" / "manifest-1.json"
    values = json.loads(golden.read_text())
    assert Manifest.model_validate(values).model.sliding is None
    values["model"]["sliding"] = {"window": 512, "layers": [0, 3]}
    sliding = Manifest.model_validate(values).model.sliding
    assert (sliding.window, sliding.layers) == (512, (0, 3))
