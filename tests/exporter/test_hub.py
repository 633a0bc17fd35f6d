"""Downloading from a hub on loopback, by huggingface_hub as it is."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import IncompleteSnapshotError

from exporter.checkpoint import read_checkpoint, read_drafter
from exporter.config import HubModel
from exporter.errors import ExportError
from exporter.hub import Hub, fetch
from exporter.progress import no_bar
from runtime_py.printable import one_line
from tests.exporter.fake_hub import COMMIT, GOOD_TOKEN, FakeHub, fake_hub

TARGET, DRAFTER = HubModel("maker/target"), HubModel("maker/drafter")
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def server(originals, tmp_path):
    """The small pair, published."""
    with fake_hub() as fake:
        for name, folder in zip((TARGET.repo, DRAFTER.repo), originals, strict=True):
            copy = Path(shutil.copytree(folder, tmp_path / name))
            (copy / "tokenizer.json").write_text("{}")
            (copy / "pytorch_model.bin").write_bytes(b"a pickle")
            (copy / "modeling_odd.py").write_text("raise SystemExit")
            fake.add(name, copy)
        yield fake


@pytest.fixture
def hub(server, tmp_path):
    return Hub(endpoint=server.endpoint, cache=tmp_path / "cache", wait_s=0.0)


def error_of(*models: HubModel, hub: Hub) -> str:
    with pytest.raises(ExportError) as caught:
        fetch(models, no_bar, hub)
    message = str(caught.value)
    assert one_line(message) == message
    assert len(message) < 500
    return message


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def blob_of(server: FakeHub, hub: Hub, model: HubModel = TARGET) -> Path:
    """Where the weights lie in the cache."""
    content = server.repositories[model.repo].files[WEIGHTS]
    return hub.storage(model) / "blobs" / hashlib.sha256(content).hexdigest()


def test_a_pair_comes_whole_and_nothing_else(server, hub, originals):
    fetched = fetch([TARGET, DRAFTER], no_bar, hub)
    target = read_checkpoint(fetched[TARGET].folder)
    assert target.spec == read_checkpoint(originals[0]).spec
    assert read_drafter(fetched[DRAFTER].folder, target).names()
    names = {path.name for path in fetched[TARGET].folder.iterdir()}
    assert names == {"config.json", "generation_config.json", "tokenizer.json", WEIGHTS}
    for name in names:
        content = server.repositories[TARGET.repo].files[name]
        assert (fetched[TARGET].folder / name).read_bytes() == content
    assert fetched[TARGET].commit == COMMIT
    assert not server.asked("GET", ".bin")
    assert not server.asked("GET", ".py")
    assert not list(hub.cache.rglob("*.incomplete"))


def test_what_is_there_is_not_asked_for_again(server, hub):
    first = fetch([TARGET], no_bar, hub)
    server.requests.clear()
    assert fetch([TARGET], no_bar, hub) == first
    assert server.requests
    assert not [request for request in server.requests if "/api/" not in request.path]


def test_huggingface_hub_itself_finds_what_came(hub):
    folder = fetch([TARGET], no_bar, hub)[TARGET].folder
    found = try_to_load_from_cache(TARGET.repo, WEIGHTS, cache_dir=hub.cache)
    assert found == str(folder / WEIGHTS)
    offline = {"cache_dir": hub.cache, "local_files_only": True}
    assert snapshot_download(TARGET.repo, allow_patterns="*.safetensors", **offline) == str(folder)
    with pytest.raises(IncompleteSnapshotError):  # it knows that the pickle did not come
        snapshot_download(TARGET.repo, **offline)


def test_a_branch_a_tag_or_a_commit(server, hub):
    server.repositories[TARGET.repo].revisions = ("main", "v1", "refs/pr/4")
    for revision in ("v1", "refs/pr/4", COMMIT):
        model = HubModel(TARGET.repo, revision)
        assert fetch([model], no_bar, hub)[model].commit == COMMIT


def test_progress_counts_megabytes(server, hub, monkeypatch):
    monkeypatch.setattr("exporter.hub.MB", 1000)
    shown: list[object] = []

    class Bar:
        def __init__(self, *given: object) -> None:
            shown.append(given)

        def __enter__(self):
            return shown.append

        def __exit__(self, *_: object) -> None:
            pass

    fetch([TARGET], Bar, hub)
    files = server.repositories[TARGET.repo].files
    size = sum(len(files[path.name]) for path in hub.storage(TARGET).rglob("snapshots/*/*"))
    assert shown[0] == ("download", -(-size // 1000), "MB")
    assert shown[-1] == size // 1000


class TestAnInterruption:
    def test_a_cut_connection_is_gone_on_with(self, server, hub):
        server.cut_after, server.cuts_left = 10_000, 2
        folder = fetch([TARGET], no_bar, hub)[TARGET].folder
        ranges = [request.range for request in server.asked("GET", blob_of(server, hub).name)]
        assert ranges == [None, "bytes=10000-", "bytes=20000-"]
        assert (folder / WEIGHTS).read_bytes() == server.repositories[TARGET.repo].files[WEIGHTS]

    def test_the_next_run_goes_on_where_the_first_was_killed(self, server, hub, caplog):
        """Ctrl-C keeps what came; the same command asks for the rest."""
        content = server.repositories[TARGET.repo].files[WEIGHTS]
        blob = blob_of(server, hub)

        class Interrupted:
            def __init__(self, *_: object) -> None:
                pass

            def __enter__(self):
                def stop(_: int) -> None:
                    if server.cuts_left == 0:  # the weights are coming
                        raise KeyboardInterrupt

                return stop

            def __exit__(self, *_: object) -> None:
                pass

        server.cut_after, server.cuts_left = 12_345, 1
        with caplog.at_level("INFO", "exporter"), pytest.raises(KeyboardInterrupt):
            fetch([TARGET], Interrupted, hub)
        assert "the same command goes on from there" in caplog.messages[-1]
        partial = blob.with_name(f"{blob.name}.incomplete")
        assert partial.read_bytes() == content[:12_345]
        assert not blob.exists()
        server.requests.clear()
        server.cuts_left = 0
        folder = fetch([TARGET], no_bar, hub)[TARGET].folder
        assert [request.range for request in server.asked("GET", blob.name)] == ["bytes=12345-"]
        assert (folder / WEIGHTS).read_bytes() == content
        assert not partial.exists()

    def test_a_wrong_range_begins_anew(self, server, hub):
        """Without a range, so that the storage cannot misunderstand it again."""
        server.cut_after, server.cuts_left = 10_000, 1

        def attack(handler, request):
            if request.range is None:
                return False
            handler.answer(206, {"Content-Range": "bytes 5-9/10"}, b"other")
            return True

        server.attack = attack
        folder = fetch([TARGET], no_bar, hub)[TARGET].folder
        assert (folder / WEIGHTS).read_bytes() == server.repositories[TARGET.repo].files[WEIGHTS]

    def test_a_storage_that_knows_no_ranges_sends_it_all_again(self, server, hub):
        server.cut_after, server.cuts_left, server.ignores_ranges = 10_000, 1, True
        folder = fetch([TARGET], no_bar, hub)[TARGET].folder
        assert (folder / WEIGHTS).read_bytes() == server.repositories[TARGET.repo].files[WEIGHTS]

    def test_nothing_comes_any_more(self, server, hub):
        server.cut_after, server.cuts_left = 0, 1000
        message = error_of(TARGET, hub=hub)
        assert "cannot be reached" in message
        assert "the same command goes on from there" in message
        assert server.cuts_left == 1000 - 5

    def test_a_longer_leftover_is_begun_again(self, server, hub):
        blob = blob_of(server, hub)
        blob.parent.mkdir(parents=True)
        blob.with_name(f"{blob.name}.incomplete").write_bytes(b"x" * 10**6)
        fetch([TARGET], no_bar, hub)
        assert blob.read_bytes() == server.repositories[TARGET.repo].files[WEIGHTS]


def test_two_exports_download_once(server, hub, caplog):
    """The second waits for the first, which may be `hf download`, and takes what it brought."""
    blob = blob_of(server, hub)
    lock = hub.lock(TARGET, blob.name)
    lock.parent.mkdir(parents=True)
    held = FileLock(lock)
    held.acquire()
    with caplog.at_level("INFO", "exporter"), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(fetch, [TARGET], no_bar, hub)
        while not any("waiting for another process" in line for line in caplog.messages):
            time.sleep(0.01)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(server.repositories[TARGET.repo].files[WEIGHTS])
        held.release()
        assert waiting.result(timeout=30)[TARGET].commit == COMMIT
    assert not server.asked("GET", f"/{blob.name}")


class TestWrongBytes:
    def test_of_a_large_file(self, server, hub):
        repository = server.repositories[TARGET.repo]
        content = bytearray(repository.files[WEIGHTS])
        content[-1] ^= 1
        repository.sent[WEIGHTS] = bytes(content)
        message = error_of(TARGET, hub=hub)
        assert "maker/target: model.safetensors" in message
        assert "checksum" in message
        assert not list(hub.cache.rglob("*.incomplete"))
        assert not blob_of(server, hub).exists()
        repository.sent.clear()
        assert fetch([TARGET], no_bar, hub)

    def test_of_a_leftover(self, server, hub):
        blob = blob_of(server, hub)
        blob.parent.mkdir(parents=True)
        blob.with_name(f"{blob.name}.incomplete").write_bytes(b"x" * 100)
        assert "checksum" in error_of(TARGET, hub=hub)
        assert fetch([TARGET], no_bar, hub)

    @pytest.mark.parametrize("sent", [b"short", b"x" * 10**6], ids=["short", "long"])
    def test_of_another_length(self, server, hub, sent):
        server.repositories[TARGET.repo].sent[WEIGHTS] = sent
        assert "bytes" in error_of(TARGET, hub=hub)

    def test_of_a_small_file(self, server, hub):
        repository = server.repositories[TARGET.repo]
        repository.sent["tokenizer.json"] = b"[]"
        assert "tokenizer.json: 2 bytes came with the checksum" in error_of(TARGET, hub=hub)
        repository.sent.clear()
        assert fetch([TARGET], no_bar, hub)

    def test_in_the_cache(self, hub):
        folder = fetch([TARGET], no_bar, hub)[TARGET].folder
        with (folder / WEIGHTS).open("ab") as file:
            file.write(b"more")
        assert "model.safetensors in the cache has" in error_of(TARGET, hub=hub)
        (folder / "tokenizer.json").write_text("[]")
        assert "tokenizer.json in the cache is not the hub's" in error_of(TARGET, hub=hub)
        assert fetch([TARGET], no_bar, hub)[TARGET].folder == folder


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
            "exporter.hub.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 7)
        )
        message = error_of(TARGET, hub=hub)
        assert "the disk is too full" in message
        assert "HF_HOME" in message
        assert not hub.cache.exists()

    def test_a_cache_that_cannot_be_written(self, hub, tmp_path):
        (tmp_path / "file").write_text("")
        broken = Hub(endpoint=hub.endpoint, cache=tmp_path / "file" / "cache")
        assert "HF_HOME" in error_of(TARGET, hub=broken)


def test_the_command_line_asks_where_the_environment_says(server, tmp_path):
    """To the point where the export itself says no: the checkpoint was downloaded and read."""
    pair = ("--model", TARGET, "--drafter", f"{DRAFTER}@{COMMIT}")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "exporter", "--target", "desktop", "--context", str(2**20)),
            *map(str, pair),
            *("--output", str(tmp_path / "bundle")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.endpoint},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("download    8 files, 0 MB")
    assert "maker/target: the model was made for 131072 tokens" in last
    assert (tmp_path / "home/hub/models--maker--drafter/snapshots" / COMMIT).is_dir()
    assert not (tmp_path / "bundle").exists()
