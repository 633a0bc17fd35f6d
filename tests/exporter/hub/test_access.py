"""What a hub refuses, a network that is not there, a disk that is full: one line for each."""

import shutil
import socket

import pytest

from exporter.config import HubModel
from exporter.hub.snapshot import Hub, fetch
from exporter.progress import no_bar
from tests.exporter.hub.fake_hub import COMMIT, GOOD_TOKEN
from tests.exporter.published import DRAFTER, TARGET, WEIGHTS, blob_of, error_of


class TestAccess:
    @pytest.mark.parametrize("token", [None, "hf_other"])
    def test_a_gated_model(self, server, hub, monkeypatch, token):
        repository = server.repositories[TARGET.repo]
        repository.gated, repository.readers = True, (GOOD_TOKEN,)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        message = error_of(TARGET, hub=hub)
        assert f"accept the terms at {server.endpoint}/maker/target" in message
        assert "`hf auth login`" in message
        assert ("`hf auth whoami`" in message) == bool(token)
        monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
        assert fetch([TARGET], no_bar, hub)

    def test_the_token_stays_with_the_hub(self, server, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
        fetch([TARGET], no_bar, hub)
        blob = blob_of(server, hub).name
        assert {request.token for request in server.asked("GET", f"/{blob}")} == {None}
        assert {request.token for request in server.asked("GET", "/api/")} == {GOOD_TOKEN}

    def test_a_wrong_token(self, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        message = error_of(TARGET, hub=hub)
        assert "the hub does not know your token" in message
        assert "`hf auth login`" in message
        assert "hf_wrong" not in message

    def test_a_token_that_cannot_be_sent(self, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_se\x01cret")
        message = error_of(TARGET, hub=hub)
        assert "HF_TOKEN" in message
        assert "cret" not in message

    @pytest.mark.parametrize("name", ["maker--two/target", "maker/tar..get", f"maker/{'x' * 97}"])
    def test_a_name_that_no_model_has(self, server, hub, name):
        assert "no model of a hub" in error_of(HubModel(name), hub=hub)
        assert not server.requests

    @pytest.mark.parametrize("token", [None, GOOD_TOKEN])
    def test_no_such_model(self, hub, monkeypatch, token):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        message = error_of(HubModel("maker/targte"), hub=hub)
        assert "maker/targte: neither a folder here nor a model at" in message

    def test_a_missing_drafter_is_known_before_the_target_comes(self, server, hub):
        assert "maker/nothing" in error_of(TARGET, HubModel("maker/nothing"), hub=hub)
        assert not server.asked("GET", "/resolve/")

    def test_no_such_revision(self, hub):
        message = error_of(HubModel(TARGET.repo, "v9"), hub=hub)
        assert "maker/target@v9: no such revision" in message

    @pytest.mark.parametrize(
        ("status", "said"),
        [
            (403, "may not read it"),
            (429, "too many requests"),
            (500, "out of order (500)"),
            (418, "answers 418"),
        ],
    )
    def test_other_refusals(self, server, hub, status, said):
        server.status = status
        assert said in error_of(TARGET, hub=hub)

    @pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"id": "x", "sha": "../.."}'])
    def test_a_server_that_is_no_hub(self, server, hub, body):
        server.body = body
        assert "does not answer as a hub does" in error_of(TARGET, hub=hub)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"adapter_config.json": b"{}"}, "a LoRA adapter"),
        ({"config.json": b"{}", "model.gguf": b""}, "GGUF"),
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "pickles"),
        ({"README.md": b""}, "no config.json"),
    ],
)
def test_a_repository_without_a_checkpoint(server, hub, files, said):
    server.repositories[TARGET.repo].files = files
    assert said in error_of(TARGET, hub=hub)


class TestWithoutNetwork:
    def test_from_the_cache(self, server, hub):
        first = fetch([TARGET, DRAFTER], no_bar, hub)
        server.close()
        assert fetch([TARGET, DRAFTER], no_bar, hub) == first

    def test_while_the_hub_is_out_of_order(self, server, hub):
        first = fetch([TARGET], no_bar, hub)
        server.status = 503
        assert fetch([TARGET], no_bar, hub) == first

    def test_nothing_in_the_cache(self, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        hub = Hub(endpoint=f"http://127.0.0.1:{port}", cache=tmp_path / "cache")
        message = error_of(TARGET, hub=hub)
        assert "it is neither a folder here nor in the cache" in message
        assert "check the network" in message

    def test_offline_by_wish(self, server, hub, monkeypatch):
        first = fetch([TARGET], no_bar, hub)
        server.requests.clear()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert fetch([TARGET], no_bar, hub) == first
        message = error_of(DRAFTER, hub=hub)
        assert "it is neither a folder here nor in the cache, and HF_HUB_OFFLINE is set" in message
        assert not server.requests

    def test_a_part_in_the_cache(self, server, hub):
        folder = fetch([TARGET], no_bar, hub)[TARGET].folder
        (folder / WEIGHTS).unlink()
        server.close()
        assert "only a part of it is in the cache" in error_of(TARGET, hub=hub)

    def test_a_ref_that_names_no_commit(self, server, hub):
        folder = fetch([TARGET], no_bar, hub)[TARGET].folder
        shutil.copytree(folder, hub.cache / "elsewhere" / COMMIT)
        (hub.storage(TARGET) / "refs/main").write_text(f"../../elsewhere/{COMMIT}")
        server.close()
        assert "refs/main in the cache names no commit" in error_of(TARGET, hub=hub)

    @pytest.mark.parametrize("endpoint", ["nonsense", "http://[::1", "ftp://here"])
    def test_an_endpoint_that_is_none(self, tmp_path, endpoint):
        hub = Hub(endpoint=endpoint, cache=tmp_path / "cache")
        assert "maker/target" in error_of(TARGET, hub=hub)


class TestTheDisk:
    def test_too_full(self, hub, monkeypatch):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 7)
        )
        message = error_of(TARGET, hub=hub)
        assert "the disk is too full" in message
        assert "HF_HOME" in message
        assert not hub.cache.exists()

    def test_a_cache_that_cannot_be_written(self, hub, tmp_path):
        (tmp_path / "file").write_text("")
        broken = Hub(endpoint=hub.endpoint, cache=tmp_path / "file" / "cache")
        assert "HF_HOME" in error_of(TARGET, hub=broken)
