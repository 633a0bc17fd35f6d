"""Small checkpoints that tests may damage."""

import shutil
from pathlib import Path

import pytest

from tests.exporter import tiny_models


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_models.save_pair(tiny_models.E2B, 1, tmp_path_factory.mktemp("e2b"))


@pytest.fixture
def target(originals: tuple[Path, Path], tmp_path: Path) -> Path:
    """A target folder a test may damage."""
    return Path(shutil.copytree(originals[0], tmp_path / "a-target"))


@pytest.fixture
def drafter(originals: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals[1], tmp_path / "a-drafter"))
