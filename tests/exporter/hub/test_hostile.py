"""Hubs that mean harm: nothing gets out of the cache, and every one ends in one line."""

import os

import pytest

from tests.exporter.hub.fake_hub import COMMIT, GOOD_TOKEN
from tests.exporter.hub.fuzz_hub import FILES, Attack, hostile_hubs


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)


def test_an_etag_is_no_path(tmp_path):
    """huggingface_hub 2.4's cache takes a small file's ETag for a blob's file name."""
    outside = tmp_path / "home" / "authorized_keys"
    blobs = tmp_path / "home" / "cache" / "models--maker--target" / "blobs"
    etag = f'"{os.path.relpath(outside, blobs)}"'
    headers = {"ETag": etag, "X-Linked-ETag": etag, "X-Repo-Commit": COMMIT}

    def answer(handler):
        name = handler.path.rpartition("/")[2]
        handler.answer(200, headers, FILES[name])

    assert Attack("etag", "small", answer).survive(tmp_path, timeout_s=10.0) == ""


@pytest.mark.parametrize("where", ["listing", "small", "large"])
def test_the_token_follows_no_redirection(tmp_path, where):
    def answer(handler):
        place = handler.hub.storage_url.replace("127.0.0.1", "localhost")
        handler.answer(302, {"Location": f"{place}/elsewhere"})

    assert Attack("redirect", where, answer).survive(tmp_path, timeout_s=10.0)


def test_one_line_and_nothing_outside_the_cache(tmp_path):
    for attack in hostile_hubs(seed=1, count=60):
        folder = tmp_path / attack.name.partition(":")[0]
        folder.mkdir()
        attack.survive(folder)
