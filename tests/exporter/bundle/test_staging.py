"""A bundle takes its place in one step: whatever ends the export, old or new is there, whole."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.bundle import staging
from exporter.bundle.staging import remove_left, staged
from exporter.errors import ExportError
from tests.runtime_py.bundles import write_fake_bundle

ROOT = Path(__file__).parents[3]
DIES = """
import os, signal, sys
from pathlib import Path
from exporter.bundle.staging import staged
with staged(Path(sys.argv[1]), True) as folder:
    (folder / "model").write_text("half")
    {end}
"""


@pytest.fixture
def bundle(tmp_path):
    """An old bundle, in a folder with nothing else."""
    (tmp_path / "place").mkdir()
    return write_fake_bundle(tmp_path / "place" / "bundle")


def fill(folder: Path) -> None:
    (folder / "reference.npz").write_text("new")


def is_new(bundle: Path) -> bool:
    return os.listdir(bundle.parent) == [bundle.name] and os.listdir(bundle) == ["reference.npz"]


def is_old(bundle: Path) -> bool:
    return os.listdir(bundle.parent) == [bundle.name] and (bundle / "manifest.json").is_file()


@pytest.mark.parametrize("exchange", [True, False])
def test_the_new_takes_the_place_of_the_old(bundle, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    with staged(bundle, True) as folder:
        fill(folder)
        assert is_old_beside(bundle, folder)
    assert is_new(bundle)


def is_old_beside(bundle, folder):
    return folder.parent == bundle.parent and (bundle / "manifest.json").is_file()


def test_a_link_to_a_bundle_stays(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    with staged(tmp_path / "link", True) as folder:
        fill(folder)
    assert (tmp_path / "link").is_symlink()
    assert is_new(bundle)


def test_missing_parents_are_made_and_go_again_on_failure(tmp_path):
    output = tmp_path / "a" / "b" / "bundle"
    with pytest.raises(ValueError, match="wrong"), staged(output, False):
        raise ValueError("wrong")
    assert not (tmp_path / "a").exists()
    with staged(output, False) as folder:
        fill(folder)
    assert is_new(output)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some room"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; nothing was written"),
    ],
)
def test_a_disk_that_fails_leaves_the_old(bundle, monkeypatch, error, said):
    def fail(_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ExportError, match=said), staged(bundle, True) as folder:
        fill(folder)
    assert is_old(bundle)


def test_what_was_put_there_meanwhile_is_kept(bundle):
    with pytest.raises(ExportError, match=r"holds notes\.txt, which"), staged(bundle, True):
        (bundle / "notes.txt").write_text("years of work")
    assert is_old(bundle)
    assert (bundle / "notes.txt").read_text() == "years of work"


def test_what_came_there_meanwhile_is_not_replaced_without_overwrite(tmp_path):
    output = tmp_path / "bundle"
    with pytest.raises(ExportError, match="exists already"), staged(output, False):
        output.mkdir()
    assert os.listdir(tmp_path) == ["bundle"]


@contextmanager
def as_nobody():
    """Root may write everywhere."""
    ids = os.getresuid()
    if ids[1] == 0:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(*ids)


@pytest.mark.parametrize("output", ["bundle", "new", "a/b/new"])
def test_a_folder_that_may_not_be_written(output):
    with tempfile.TemporaryDirectory() as name:  # nobody may look into pytest's own
        place = Path(name)
        write_fake_bundle(place / "bundle")
        place.chmod(0o555)
        with (
            as_nobody(),
            pytest.raises(ExportError, match=r"may not write|Permission denied"),
            staged(place / output, True),
        ):
            pytest.fail("the work was begun")
        assert os.listdir(place) == ["bundle"]
        place.chmod(0o755)


def test_the_left_of_the_dead_are_removed_and_those_of_the_living_are_not(bundle):
    def run(end):
        command = [sys.executable, "-c", DIES.format(end=end), str(bundle)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE)

    with run("print(folder, flush=True); input()") as living:
        folder = Path(living.stdout.readline().decode().strip())
        with run("os.kill(os.getpid(), signal.SIGKILL)") as dead:
            assert dead.wait() == -signal.SIGKILL
        assert len(os.listdir(bundle.parent)) == 3
        remove_left(bundle)
        assert set(os.listdir(bundle.parent)) == {"bundle", folder.name}
        living.kill()
    with pytest.raises(ExportError, match="exists already"), staged(bundle, False):
        pass
    assert is_old(bundle)


def test_no_step_of_the_publication_is_one_too_many(bundle, tmp_path):
    """Ended before each of them by SIGINT, SIGTERM or SIGHUP, and by SIGKILL."""
    (bundle / "reference.npz").write_text("old")
    command = [sys.executable, "-m", "tests.exporter.bundle.end_at_every_step", tmp_path, bundle]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found) == {"exchange", "two renames", "new"}
    for case, ends in found.items():
        assert [wrong for _, wrong in ends] == [[], []], case
        num_lines, num_killed = (num_steps for num_steps, _ in ends)
        assert num_lines > 100
        assert num_killed > 5
