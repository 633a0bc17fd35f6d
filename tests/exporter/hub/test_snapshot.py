"""Downloading from a hub on loopback, into the cache as huggingface_hub has it."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import IncompleteSnapshotError

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.config import HubModel
from exporter.hub.snapshot import fetch
from exporter.progress import no_bar
from tests.exporter.hub.fake_hub import COMMIT
from tests.exporter.published import DRAFTER, TARGET, WEIGHTS, blob_of, error_of


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
    monkeypatch.setattr("exporter.hub.snapshot.MB", 1000)
    shown: list[object] = []

    class Bar:
        def __init__(self, *given: object) -> None:
            shown.append(given)

        def __enter__(self):
            return shown.append

        def __exit__(self, *_: object) -> None:
            pass

    fetch([TARGET], Bar, hub)
    size = len(server.repositories[TARGET.repo].files[WEIGHTS])
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
    choice, first, *_, last = done.stderr.splitlines()
    assert choice.startswith("export ")
    assert first.startswith("download    2 files, 0 MB")
    assert "maker/target: the model was made for 131072 tokens" in last
    assert (tmp_path / "home/hub/models--maker--drafter/snapshots" / COMMIT).is_dir()
    assert not (tmp_path / "bundle").exists()
