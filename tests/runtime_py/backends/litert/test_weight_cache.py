import os
import shutil
from types import SimpleNamespace

import pytest

from runtime_py.backends.litert.weight_cache import UNNAMED, in_memory, weight_cache
from runtime_py.device import sealed_file
from runtime_py.device.caches import private_folder
from runtime_py.formats.litertlm import Section

pytest.importorskip("ai_edge_litert")  # its version is part of the name

SECTION = Section(data_type="tflite_model", model_type="tf_lite_mtp_drafter", begin=16, end=3000)


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "model.litertlm"
    path.write_bytes(bytes(range(250)) * 12)
    os.utime(path, ns=(0, 10**18))
    return path


@pytest.fixture
def directory(tmp_path):
    return private_folder(tmp_path / "cache")


def build(directory, bundle):
    """A cache as a model that loaded would leave it."""
    cache = weight_cache(directory, bundle, SECTION)
    with open(cache.path, "wb") as file:
        file.write(b"packed")
    assert cache.commit() == cache.final.as_posix()
    return cache


def test_a_new_file_gets_its_name_only_when_complete(directory, bundle):
    cache = weight_cache(directory, bundle, SECTION)
    assert cache.path.endswith(".tmp")
    assert cache.final.suffix == ".xnnpack"
    assert build(directory, bundle).final == cache.final
    again = weight_cache(directory, bundle, SECTION)
    assert (again.path, again.final) == (cache.final.as_posix(), None)
    assert again.commit() is None


def test_a_load_that_failed_leaves_nothing(directory, bundle):
    cache = weight_cache(directory, bundle, SECTION)
    cache.begin()
    with open(cache.path, "wb") as file:
        file.write(b"half")
    cache.discard()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("byte", [20, 2999])
def test_a_changed_model_gets_a_new_file_and_the_old_one_goes(directory, bundle, byte):
    old = build(directory, bundle).final
    content = bytearray(bundle.read_bytes())
    content[byte] ^= 1
    bundle.write_bytes(content)
    os.utime(bundle, ns=(0, 10**18))
    new = build(directory, bundle).final
    assert set(directory.iterdir()) == {new, new.with_name(new.name + ".sum")}
    assert new != old


def test_the_time_of_the_file_counts(directory, bundle):
    old = build(directory, bundle).final
    os.utime(bundle, ns=(0, 10**18 + 1))
    assert weight_cache(directory, bundle, SECTION).final != old


def test_another_section_of_the_same_file_stays(directory, bundle):
    first = build(directory, bundle).final
    other = Section(data_type="tflite_model", model_type="tf_lite_prefill_decode", begin=0, end=9)
    cache = weight_cache(directory, bundle, other)
    cache.begin()
    cache.commit()
    assert set(directory.glob("*.xnnpack")) == {first, cache.final}


@pytest.fixture
def no_anonymous_files(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)


@pytest.mark.usefixtures("no_anonymous_files")
class TestWithoutFile:
    def test_without_room_the_weights_stay_in_memory(self, directory, bundle, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50 << 20))
        assert weight_cache(directory, bundle, SECTION).path == UNNAMED

    def test_a_directory_that_cannot_be_made_is_no_error(self, bundle, tmp_path):
        (tmp_path / "taken").write_bytes(b"")
        directory = private_folder(tmp_path / "taken" / "cache")
        assert weight_cache(directory, bundle, SECTION).path == UNNAMED

    def test_a_path_that_toml_would_misread_is_not_used(self, bundle, tmp_path):
        assert weight_cache(tmp_path / 'a"b', bundle, SECTION).path == UNNAMED

    def test_what_has_no_name_cannot_be_read_again(self):
        assert in_memory().commit() is None


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux")
def test_weights_in_memory_can_be_read_again_until_the_model_is_closed():
    cache = in_memory()
    with open(cache.path, "wb") as file:
        file.write(b"packed")
    assert cache.commit() == cache.path
    with open(cache.path, "rb") as file:
        assert file.read() == b"packed"
    cache.close()
    assert not os.path.exists(cache.path)


def test_what_dead_processes_left_is_removed_at_once(directory, bundle):
    writing = weight_cache(directory, bundle, SECTION)
    writing.begin()
    left = directory / "a.1.2.tmp"
    left.write_bytes(b"half")
    other = weight_cache(directory, bundle, SECTION)
    other.begin()
    assert {str(path) for path in directory.iterdir()} == {writing.path, other.path}
    writing.close()
    other.close()
    weight_cache(directory, bundle, SECTION)
    assert not os.path.exists(writing.path)


def test_a_file_that_was_written_but_not_changed_is_kept(directory, bundle):
    """As one that was copied with the user's home: another inode, other times."""
    path = build(directory, bundle).final
    content, sealed = path.read_bytes(), path.with_name(path.name + ".sum").read_bytes()
    path.unlink()
    path.write_bytes(content)
    for _ in range(2):
        assert weight_cache(directory, bundle, SECTION).path == path.as_posix()
    assert path.with_name(path.name + ".sum").read_bytes() != sealed


def test_a_file_that_nobody_touched_is_not_read_again(directory, bundle, monkeypatch):
    path = build(directory, bundle).final
    monkeypatch.setattr(sealed_file, "_checksum", lambda _: pytest.fail("read again"))
    assert weight_cache(directory, bundle, SECTION).path == path.as_posix()


@pytest.mark.parametrize("sums", [b"", b"{}", b"[]", b'{"identity": 1, "crc32": []}', b"\xff"])
def test_a_damaged_checksum_packs_again(directory, bundle, sums):
    path = build(directory, bundle).final
    path.with_name(path.name + ".sum").write_bytes(sums)
    assert weight_cache(directory, bundle, SECTION).path.endswith(".tmp")
    assert not path.exists()


@pytest.mark.parametrize("name", [b"c\xff", b'c"', b"c\\", b"c\nx = 1", b"c\x1b"])
def test_a_folder_that_litert_cannot_be_told_of_is_not_used(tmp_path, bundle, name):
    directory = private_folder(tmp_path / os.fsdecode(name))
    cache = weight_cache(directory, bundle, SECTION)
    cache.close()
    assert cache.final is None
