"""What a wheel installs: two packages with their data, and nothing else at the top level."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
MODELS = (
    "tiny.toml",
    "gemma4-tiny/prompts.jsonl",
    "gemma4-tiny/target/model.safetensors",
    "gemma4-tiny/drafter/model.safetensors",
)


def tracked(*places: str) -> list[str]:
    """Paths that git knows."""
    command = ["git", "ls-files", "-z", *places]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.rstrip("\0").split("\0")


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> set[str]:
    """The files of a wheel that is built from what git knows: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        if not name.startswith(("tests/", "android_demo/", "docs/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", "-w", folder, folder], check=True)
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_installs_two_packages_and_nothing_else(names):
    top = {name.split("/")[0] for name in names}
    (info,) = (name for name in top if name.endswith(".dist-info"))
    assert top == {"exporter", "runtime_py", info}
    assert {f"{info}/entry_points.txt", f"{info}/licenses/LICENSE"} <= names


def test_it_holds_every_file_of_both_packages_and_the_tiny_model(names):
    files = set(tracked("exporter", "runtime_py")) - {"exporter/models"}  # a link
    assert files - names == set()
    assert {f"exporter/models/{name}" for name in MODELS} <= names
    train = {name for name in names if name.startswith("exporter/models/gemma4-tiny/train/")}
    assert train == set()  # its corpus and its scripts stay in the repository
