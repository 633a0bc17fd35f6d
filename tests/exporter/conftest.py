"""Small checkpoints that tests may damage."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.hub.snapshot import Hub
from tests.exporter import tiny_models
from tests.exporter.hub.fake_hub import FakeHub, fake_hub
from tests.exporter.published import DRAFTER, TARGET


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


@pytest.fixture
def server(
    originals: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """The small pair, published; nobody is logged in."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with fake_hub() as fake:
        for name, folder in zip((TARGET.repo, DRAFTER.repo), originals, strict=True):
            copy = Path(shutil.copytree(folder, tmp_path / name))
            (copy / "tokenizer.json").write_text("{}")
            (copy / "pytorch_model.bin").write_bytes(b"a pickle")
            (copy / "modeling_odd.py").write_text("raise SystemExit")
            fake.add(name, copy)
        yield fake


@pytest.fixture
def hub(server: FakeHub, tmp_path: Path) -> Hub:
    """Where it is, and a cache that is empty."""
    return Hub(endpoint=server.endpoint, cache=tmp_path / "cache", wait_s=0.0)
