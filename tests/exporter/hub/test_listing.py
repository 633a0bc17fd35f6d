"""What a hub lists: every value is checked before it names a file."""

import json
from typing import Any

import pytest

from exporter.config import HubModel
from exporter.errors import ExportError
from exporter.hub.listing import parse_listing
from tests.exporter.hub.fake_hub import COMMIT

MODEL = HubModel("maker/target")
SHA1, SHA256 = "a" * 40, "b" * 64


def rows(**changes: Any) -> list[dict[str, Any]]:
    lfs = {"size": 9, "sha256": SHA256, **changes}
    return [
        {"rfilename": "config.json", "size": 2, "blobId": SHA1},
        {"rfilename": "model.safetensors", "size": 9, "blobId": SHA1, "lfs": lfs},
    ]


def content(siblings: Any, sha: object = COMMIT) -> bytes:
    return json.dumps({"sha": sha, "siblings": siblings}).encode()


def test_what_an_export_reads_small_files_first():
    ignored = [{"rfilename": name, "size": -1} for name in ("a/model.safetensors", "x.py", "..")]
    listing = parse_listing(MODEL, content([*reversed(rows()), *ignored]))
    assert [(f.name, f.size_bytes, f.blob_id) for f in listing.files] == [
        ("config.json", 2, SHA1),
        ("model.safetensors", 9, SHA256),
    ]
    assert set(listing.tree) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("size", ["9", -1, True, 9.0, 1 << 50, None, [9]])
def test_a_size_is_a_number_of_bytes(size):
    with pytest.raises(ValueError, match=r"model\.safetensors of"):
        parse_listing(MODEL, content(rows(size=size)))


@pytest.mark.parametrize("sha256", ["../../x", SHA256 + "\n", SHA256.upper(), SHA1, None, 7])
def test_a_checksum_is_one(sha256):
    with pytest.raises(ValueError, match="checksum"):
        parse_listing(MODEL, content(rows(sha256=sha256)))


@pytest.mark.parametrize("sha", ["../../x", "main", COMMIT + "\n", COMMIT.upper() + "A", None, 7])
def test_a_commit_is_one(sha):
    with pytest.raises(ValueError, match="commit"):
        parse_listing(MODEL, content(rows(), sha))


@pytest.mark.parametrize(
    "name", ["model\\..\\x.safetensors", "model\0.safetensors", f"model{'x' * 300}.safetensors"]
)
def test_a_name_that_a_disk_could_take_for_something_else(name):
    extra = {"rfilename": name, "size": 9, "blobId": SHA1}
    with pytest.raises(ExportError, match="is no file name for a checkpoint"):
        parse_listing(MODEL, content([*rows(), extra]))


def test_names_that_differ_in_case_only():
    shards = [{**rows()[1], "rfilename": f"model-{x}.safetensors"} for x in "aA"]
    with pytest.raises(ExportError, match="differ in case only"):
        parse_listing(MODEL, content([*rows(), *shards]))


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"\xff", b"[" * 10**5, content({}), content([7]), content([{}])]
)
def test_an_answer_that_is_no_listing(answer):
    with pytest.raises(ValueError, match=r"."):
        parse_listing(MODEL, answer)
