import json
import os
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import (
    file_entry,
    manifest_of,
    read_manifest,
    write_manifest,
)
from runtime_py.errors import RunError
from tests.manifest_schema import CASES, SCHEMA, edited, texts
from tests.runtime_py.bundles import manifest_values, write_fake_bundle

GOLDEN = Path(__file__).parents[2] / "golden"


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


def test_the_golden_manifest_of_every_minor_version_is_read():
    oldest = manifest_of(json.loads((GOLDEN / "manifest-1.json").read_text()), GOLDEN)
    assert oldest.runtimes["litert"].model == "model.litertlm"
    assert (oldest.sources, oldest.tokens.special_tokens) == ({}, None)
    newest = manifest_of(json.loads((GOLDEN / "manifest-1.1.json").read_text()), GOLDEN)
    assert newest.tokens.special_tokens == {"bos_token": "<bos>", "eos_token": "<stop>"}
    assert list(newest.sources) == ["target"]


def test_every_case_that_the_schema_gives_is_refused_or_read_as_it_says():
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    refused = cases["refused_by_schema"] + cases["refused_by_rules"]
    accepted = cases["accepted"] + cases["accepted_of_a_newer_minor"]
    for case in refused:
        with pytest.raises(RunError) as caught:
            manifest_of(edited(cases["manifest"], case["edits"]), GOLDEN)
        assert "\n" not in str(caught.value)
    for case in accepted:
        manifest_of(edited(cases["manifest"], case["edits"]), GOLDEN)
    assert len(refused) > 150
    assert len(accepted) > 50


def test_a_json_schema_library_agrees():
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    for version in ("1", "1.1"):
        validator.validate(json.loads((GOLDEN / f"manifest-{version}.json").read_text()))
    for case in cases["accepted"]:
        validator.validate(edited(cases["manifest"], case["edits"]))
    for case in cases["refused_by_schema"]:
        assert not validator.is_valid(edited(cases["manifest"], case["edits"])), case


@pytest.mark.parametrize("path", texts(), ids=lambda path: path.name)
def test_the_committed_schema_and_cases_are_up_to_date(path):
    """If not: python -m tests.manifest_schema"""
    assert path.read_text(encoding="utf-8") == texts()[path]


def test_a_newer_minor_version_may_have_unknown_keys_but_no_wrong_values(bundle):
    rewrite(bundle, lambda v: v.update(format_version="1.7", surprise=1))
    assert read_manifest(bundle).name == "scripted"
    rewrite(bundle, lambda v: v["model"].update(vocab_size=0))
    with pytest.raises(RunError, match=r"model\.vocab_size"):
        read_manifest(bundle)


def test_duplicate_keys_are_refused(bundle):
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"name"', '"draft_length": 9, "name"', 1))
    with pytest.raises(RunError, match="duplicate key 'draft_length'"):
        read_manifest(bundle)


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
        (lambda v: v.update(format_version=2), r"manifest format 2, this runtime reads 1\.x"),
        (lambda v: v.pop("format_version"), "manifest format None"),
        (lambda v: v.update(surprise=1), "surprise: Extra inputs"),
        (lambda v: v.pop("model"), "model: Field required"),
        (lambda v: v["model"].update(vocab_size="4096"), "model.vocab_size: Input should be"),
        (lambda v: v["model"].update(vocab_size=10**12), "model.vocab_size: Input should be"),
        (lambda v: v["model"].update(hidden_size=0), "model.hidden_size: Input should be"),
        (lambda v: v["tokens"].update(bos_token_id=300), "token 300 of a vocabulary of 300"),
        (lambda v: v["tokens"].update(stop_token_ids=[1, 999]), "token 999 of a vocabulary of 300"),
        (lambda v: tolerances(v).update(max_logit_error=float("inf")), "not valid JSON .Infinity"),
        (lambda v: tolerances(v).update(max_logit_error=11.0), "max_logit_error: Input should be"),
        (lambda v: tolerances(v).update(min_agreement=float("nan")), "not valid JSON .NaN"),
        (lambda v: v.update(draft_length=-1), "draft_length: Input should be"),
        (lambda v: v.update(runtimes={}), "runtimes: Dictionary should have at least 1"),
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
