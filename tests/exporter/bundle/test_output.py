"""Where a bundle may go: nothing but a bundle of ours is ever replaced."""

import os
from pathlib import Path

import pytest

from exporter.bundle import output
from exporter.bundle.output import check_output
from exporter.errors import ExportError
from runtime_py.bundle.manifest import parse_manifest
from tests.runtime_py.bundles import write_fake_bundle


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that is not above the current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "place"


@pytest.fixture
def bundle(place):
    return write_fake_bundle(place)


def refusal(place: Path, overwrite: bool = True, sources=()) -> str:
    with pytest.raises(ExportError) as refused:
        check_output(place, overwrite, sources)
    assert str(refused.value).startswith(str(place)[:70])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def as_web(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text().replace("raspberry-pi", "web")
    (bundle / "manifest.json").write_text(text)


class TestWhatMayGo:
    def test_a_bundle_and_an_empty_folder(self, bundle, tmp_path):
        assert check_output(bundle, True, []) == bundle
        (tmp_path / "empty").mkdir()
        assert check_output(tmp_path / "empty", True, []) == tmp_path / "empty"
        assert "exists already; add --overwrite" in refusal(bundle, overwrite=False)

    def test_a_damaged_bundle(self, bundle):
        (bundle / "reference.npz").unlink()
        (bundle / "tokenizer.json").write_text("{")
        assert check_output(bundle, True, []) == bundle

    def test_what_npm_and_litert_lm_put_into_it(self, bundle):
        (bundle / "node_modules" / "@litertjs" / "core").mkdir(parents=True)
        (bundle / "node_modules" / ".package-lock.json").write_text("{}")
        assert "holds node_modules/, which" in refusal(bundle)
        as_web(bundle)
        (bundle / "model.litertlm.xnnpack_cache").write_text("packed")
        assert check_output(bundle, True, []) == bundle
        (bundle / "node_modules" / "mine").mkdir()
        assert "holds node_modules/mine/, which" in refusal(bundle)


class TestWhatStays:
    @pytest.mark.parametrize("manifest", ['{"name": "My App", "start_url": "/"}', "[]", "{", ""])
    def test_a_web_app(self, place, manifest):
        place.mkdir()
        (place / "manifest.json").write_text(manifest)
        (place / "index.html").write_text("my app")
        assert "its manifest.json is not one of ours" in refusal(place)

    def test_notes_in_a_bundle(self, bundle, tmp_path):
        for name in ("a.txt", "notes.txt"):
            (bundle / name).write_text("years of work")
        for name in ("sub", "tokenizer"):
            (bundle / name).mkdir()
        (bundle / "link").symlink_to(tmp_path)
        assert "holds a.txt, link, notes.txt …, which the bundle does not list" in refusal(bundle)

    def test_a_folder_by_the_name_of_a_listed_file(self, bundle):
        (bundle / "reference.npz").unlink()
        (bundle / "reference.npz").mkdir()
        assert "holds reference.npz/, which" in refusal(bundle)

    def test_other_files_and_folders(self, place):
        place.write_text("a file")
        assert "a file, not a bundle" in refusal(place)
        place.unlink()
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
        assert "not a bundle (no manifest.json)" in refusal(place)


class TestWhatIsRead:
    def test_the_checkpoint_itself_or_a_folder_of_it(self, bundle, tmp_path):
        (tmp_path / "link").symlink_to(bundle)
        assert f"lies in {bundle}, which is read" in refusal(bundle, sources=[bundle])
        assert "which is read" in refusal(bundle / "new", sources=[tmp_path / "link"])
        assert check_output(tmp_path / "new", True, [bundle]) == tmp_path / "new"

    @pytest.mark.parametrize("source", ["ck", "reference.npz"])
    def test_a_source_in_the_output(self, bundle, source):
        (bundle / "ck").mkdir()
        assert f"{bundle / source} lies in it, which is read" in refusal(
            bundle, sources=[bundle / source]
        )

    def test_a_checkpoint_with_a_link_to_the_bundles_tokenizer(self, bundle, tmp_path):
        (tmp_path / "ck").mkdir()
        (tmp_path / "ck" / "tokenizer.json").symlink_to(bundle / "tokenizer.json")
        assert "ck/tokenizer.json lies in it" in refusal(bundle, sources=[tmp_path / "ck"])


class TestThePlace:
    def test_a_link_to_a_bundle_stands_for_it(self, bundle, tmp_path):
        (tmp_path / "link").symlink_to(bundle.name)
        assert check_output(tmp_path / "link", True, []) == bundle
        assert "exists already" in refusal(tmp_path / "link", overwrite=False)

    @pytest.mark.parametrize("leads_to", ["nowhere", "link"])
    def test_a_link_to_nothing(self, place, leads_to):
        link = place.with_name("link")
        link.symlink_to(leads_to)
        assert f"a link to {leads_to}, which is not there" in refusal(link)

    @pytest.mark.parametrize("name", [".", "..", "/", "", "../here"])
    @pytest.mark.usefixtures("place")
    def test_the_current_folder_and_those_above(self, name):
        assert "the folder you are in, or one above it" in refusal(Path(name))

    def test_names_too_long(self, place):
        assert "a name of 300 bytes, a bundle's has at most 200" in refusal(
            place.with_name("x" * 300)
        )
        assert "a name of 202 bytes" in refusal(place.with_name("ä" * 101))
        assert check_output(place.with_name("x" * 200), True, []).name == "x" * 200

    @pytest.mark.usefixtures("place")
    def test_a_source_with_a_name_too_long_is_not_taken_for_the_output(self, place):
        source = Path("x" * 5000)
        with pytest.raises(ExportError, match=r"^x{297}\.\.\.: File name too long; name another$"):
            check_output(place, False, [source])

    def test_a_mount_point(self):
        assert "a mount point, which cannot be replaced; name a folder in it" in refusal(
            Path("/proc")
        )

    def test_a_folder_of_the_same_file_system_that_is_mounted(self, tmp_path, monkeypatch):
        (tmp_path / "b c").mkdir()
        mounts = tmp_path / "mountinfo"
        line = rf"42 27 254:0 /a {tmp_path}/b\040c rw,relatime - ext4 /dev/vda rw"
        mounts.write_text(f"26 1 254:0 / / rw - ext4 /dev/vda rw\n{line}\n")
        monkeypatch.setattr(output, "_MOUNTS", mounts)
        assert "a mount point, which cannot be replaced" in refusal(tmp_path / "b c")

    def test_no_permission(self, bundle, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_: False)  # root always has it
        assert "you may not write there" in refusal(bundle)

    def test_the_current_folder_is_gone(self, place, tmp_path, monkeypatch):
        place.mkdir()
        monkeypatch.chdir(place)
        place.rmdir()
        assert "No such file or directory" in refusal(Path("bundle"))
        monkeypatch.chdir(tmp_path)


def test_the_manifest_of_a_bundle_is_read_whatever_has_become_of_its_files(bundle):
    (bundle / "reference.npz").unlink()
    assert parse_manifest(bundle).name == "scripted"
