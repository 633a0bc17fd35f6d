"""Every file that is opened is listed, regular, inside, and what the manifest says it is."""

import json
import os
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from runtime_py.backends import SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bundle import verified
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import file_entry
from runtime_py.cli.commands import main
from runtime_py.device.caches import user_cache
from runtime_py.errors import RunError
from tests.runtime_py.bundles import write_fake_bundle
from tests.runtime_py.commands import TOY_ONNX


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path):
    """With the toy's ONNX graphs."""
    folder = write_fake_bundle(tmp_path / "bundle")
    for path in TOY_ONNX.glob("model.*"):
        shutil.copy(path, folder)
    values = json.loads((folder / "manifest.json").read_text())
    values["runtimes"] = {"onnx": values["runtimes"]["litert"] | {"model": "model.fill.onnx"}}
    (folder / "manifest.json").write_text(json.dumps(values))
    return listed(folder)


def listed(folder, *left_out):
    """The manifest's list of files made right again."""
    values = json.loads((folder / "manifest.json").read_text())
    values["files"] = {
        path.name: file_entry(path).model_dump()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (*left_out, "manifest.json")
    }
    (folder / "manifest.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read for their checksum."""
    names = []
    checksum = verified.checksum

    def counted(path, progress):
        names.append(path.name)
        return checksum(path, progress)

    monkeypatch.setattr(verified, "checksum", counted)
    return names


GRAPHS = ("model.fill.onnx", "model.finish.onnx", "model.draft.onnx", "model.data")


def test_all_files_of_the_graphs_are_listed(bundle, read):
    assert Bundle.open(bundle).model_path("onnx").name == "model.fill.onnx"
    assert sorted(read) == sorted(GRAPHS)


@pytest.mark.parametrize("name", GRAPHS[1:])
def test_a_file_that_is_opened_but_not_listed_is_refused(bundle, name):
    listed(bundle, name)
    with pytest.raises(RunError, match=f"'{name}' is used but not listed"):
        Bundle.open(bundle).model_path("onnx")


@pytest.mark.parametrize("name", GRAPHS[1:])
def test_a_link_that_leads_outside_is_refused_listed_or_not(bundle, tmp_path, name):
    (bundle / name).rename(tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    with pytest.raises(RunError, match="leads outside the bundle"):
        Bundle.open(bundle).model_path("onnx")
    listed(bundle, name)
    with pytest.raises(RunError, match=f"'{name}' is used but not listed"):
        Bundle.open(bundle).model_path("onnx")


@pytest.mark.parametrize("place", ["../model.data", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_weights_lie_beside_the_graph(bundle, place):
    """In the graph itself, or in the attribute of a node."""
    path = bundle / "model.finish.onnx"
    model = onnx.load(path, load_external_data=False)
    outside = onnx.TensorProto(name="x", data_type=1, dims=[4], data_location=1)
    outside.external_data.add(key="location", value=place)
    constant = onnx.helper.make_node("Constant", [], ["x"], value=outside)
    model.graph.node.insert(0, constant)
    path.write_bytes(model.SerializeToString())
    listed(bundle)
    with pytest.raises(RunError, match="needed a file beside it"):
        Bundle.open(bundle).model_path("onnx")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("name", ["model.data", "tokenizer.json", "manifest.json"])
def test_what_is_no_regular_file_is_refused(bundle, name, kind):
    (bundle / name).unlink()
    (os.mkfifo if kind == "pipe" else os.mkdir)(bundle / name)
    with pytest.raises(RunError, match=r"no regular file|no manifest\.json in it"):
        Bundle.open(bundle)


def test_a_file_is_read_once_and_again_when_it_changed(bundle, read):
    for _ in range(2):
        Bundle.open(bundle).tokenizer()
    assert read == ["tokenizer.json", "chat_template.jinja"]
    path = bundle / "tokenizer.json"
    whole = path.read_bytes()
    os.utime(path, ns=(1, 1))  # whatever its time says
    Bundle.open(bundle).tokenizer()
    assert read[2:] == ["tokenizer.json"]
    path.write_bytes(whole[:-1] + b" ")
    with pytest.raises(RunError, match=r"tokenizer\.json: sha256 .* was altered"):
        Bundle.open(bundle).tokenizer()


def test_another_checksum_for_the_same_file_is_not_believed(bundle):
    Bundle.open(bundle).tokenizer()
    values = json.loads((bundle / "manifest.json").read_text())
    values["files"]["tokenizer.json"]["sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match="the manifest says 000000000000"):
        Bundle.open(bundle).tokenizer()


def test_a_check_reads_everything(bundle, read):
    for _ in range(2):
        Bundle.open(bundle).verify_checksums()
    assert len(read) == 2 * len(Bundle.open(bundle).manifest.files)
    del read[:]
    Bundle.open(bundle).model_path("onnx")
    assert read == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"a": 7}', b"\xff", b"[" * 100_000, b'{"a": [{}, [[]]]}', None]
)
def test_a_damaged_list_only_costs_time(bundle, read, content):
    place = user_cache("verified") / "files.json"
    place.parent.mkdir(parents=True)
    if content is None:
        os.mkfifo(place)
    else:
        place.write_bytes(content)
    for _ in range(2):
        Bundle.open(bundle).reference()
    assert read == ["reference.npz"]


def test_the_list_has_an_end(bundle, monkeypatch):
    monkeypatch.setattr(verified, "MAX_FILES", 2)
    Bundle.open(bundle).model_path("onnx")
    kept = json.loads((user_cache("verified") / "files.json").read_text())
    assert len(kept) == 2
    assert set(map(Path, kept)) <= set(bundle.resolve().iterdir())


def test_without_a_cache_folder_everything_runs(bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Bundle.open(bundle).model_path("onnx")


def test_progress_is_shown_for_large_files(bundle, monkeypatch):
    monkeypatch.setattr(verified, "_SHOWN_MB", 0)
    shown = []

    @verified.contextmanager
    def bar(title, total, unit):
        shown.append((title, total, unit))
        yield shown.append

    Bundle.open(bundle, bar).reference()
    assert shown == [("verify", 0, "MB"), 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 49),
        ("hidden_size", 4),
        ("context_length", 23),
        ("context_length", 25),
        ("has_drafter", False),
    ],
)
def test_sizes_in_the_manifest_are_those_of_the_graphs(bundle, name, value):
    values = json.loads((bundle / "manifest.json").read_text())
    sizes = {"vocab_size": 48, "hidden_size": 16, "context_length": 24, "has_drafter": True}
    values["model"] |= sizes
    (bundle / "manifest.json").write_text(json.dumps(values))
    load_backend(Bundle.open(bundle), "onnx", SessionOptions(num_threads=1)).close()
    values["model"][name] = value
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match=f"the manifest says {name} is {value}, the graphs of onnx"):
        load_backend(Bundle.open(bundle), "onnx", SessionOptions(num_threads=1))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_damaged_file_is_named_before_anything_reads_it(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    for arguments in (["inspect"], ["generate", "--prompt", "a", "--raw"]):
        done = CliRunner().invoke(main, [arguments[0], str(bundle), *arguments[1:]])
        assert done.exit_code == 1
        assert f"{name}: sha256 " in done.stderr
        assert "the file was altered, copy it again" in done.stderr
