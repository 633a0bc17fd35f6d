import logging
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from runtime_py.device.caches import (
    open_own,
    private_folder,
    processor,
    user_cache,
    write_whole,
)


def test_the_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("litert") == tmp_path / "gemma-export" / "litert"


@pytest.mark.parametrize("chosen", ["", "relative", "./x"])
def test_a_relative_folder_is_ignored(chosen, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", chosen)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache("litert") == tmp_path / ".cache" / "gemma-export" / "litert"


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("no home")))
    assert private_folder(user_cache("costs")) is None


def test_a_processor_is_told_by_more_than_its_family():
    assert len(processor()) > 10


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, caplog, mode):
    folder = tmp_path / "cache"
    assert private_folder(folder) == folder
    folder.chmod(mode)
    caplog.set_level(logging.WARNING, "runtime_py")
    assert private_folder(folder) is None
    assert private_folder(folder) is None
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{folder}: others can write to it")


def test_a_folder_of_another_user_is_not_used(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    caplog.set_level(logging.WARNING, "runtime_py")
    assert private_folder(tmp_path) is None
    assert "belongs to user" in caplog.text


def test_only_a_regular_file_of_this_user_is_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with open_own(path) as file:
        assert file.read() == b"content"
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "none", "."):
        with pytest.raises(OSError, match=name), open_own(tmp_path / name):
            pass
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(OSError, match="belongs to user"), open_own(path):
        pass


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
