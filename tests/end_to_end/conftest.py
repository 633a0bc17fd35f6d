"""The tiny model, exported once per recipe for every runtime, and run."""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from exporter.config import load_size
from runtime_py.backends import SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.sampling import GREEDY
from runtime_py.decoding.session import Session, Stops
from tests.end_to_end.tiny_bundles import RECIPES, RUNTIMES
from tests.whole_model import WholeModel

ROOT = Path(__file__).parents[2]
NUM_TOKENS = 64


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run gemma-export or gemma-run as a user does, in a process of its own."""
    program, *rest = map(str, arguments)
    package = {"gemma-export": "exporter", "gemma-run": "runtime_py"}[program]
    return subprocess.run(
        [sys.executable, "-m", package, *rest],
        cwd=options.pop("cwd", ROOT),
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            **options.pop("env", {}),
        },
        **options,
    )


@pytest.fixture(scope="session")
def tiny():
    return load_size("tiny")


@pytest.fixture(scope="session")
def export_tiny(tmp_path_factory) -> Iterator[Callable[[str], Path]]:
    """The bundle of the tiny model with a recipe, for reading only.

    One process makes them all, for every worker of the test run; the first to ask begins it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = "PYTEST_XDIST_WORKER" in os.environ
    folder = (base.parent if shared else base) / "bundles"
    folder.mkdir(exist_ok=True)
    maker = Maker(folder)
    yield maker.bundle
    maker.end(at_once=not shared)


class Maker:
    """The process that makes the bundles in a folder; while it lives, it has the lock."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._log = folder, folder / "log.txt"
        self._process: subprocess.Popen | None = None

    def bundle(self, recipe: str) -> Path:
        while not (self._folder / recipe).exists():
            with open(self._folder / "lock", "w") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._begin(recipe, lock.fileno())
            time.sleep(0.1)
        return self._folder / recipe

    def _begin(self, recipe: str, lock: int) -> None:
        if (self._folder / recipe).exists():
            return
        assert not self._log.exists(), self._log.read_text()
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.end_to_end.tiny_bundles", self._folder],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # one core
                stdout=log,
                stderr=log,
                pass_fds=[lock],
            )

    def end(self, at_once: bool) -> None:
        """Wait for it, as other workers may, or stop it."""
        if self._process is not None:
            if at_once:
                self._process.terminate()
            self._process.wait()


@pytest.fixture(scope="session", params=RECIPES)
def recipe(request) -> str:
    return request.param


@pytest.fixture(scope="session", params=RUNTIMES)
def runtime(request) -> str:
    return request.param


class LoadedBundle:
    """A bundle, its backend and one session, to generate from again and again."""

    def __init__(self, folder: Path, runtime: str) -> None:
        self.bundle = Bundle.open(folder)
        self.reference = self.bundle.reference()
        self.tolerances = self.bundle.entry(runtime).tolerances
        self.backend = load_backend(self.bundle, runtime, SessionOptions(num_threads=1))
        self.session = Session(self.backend, self.bundle.manifest.model.context_length)

    def generate(self, prompt_ids, draft_length=0, sampling=GREEDY, num_tokens=NUM_TOKENS):
        """Tokens of a fresh sequence, stop tokens ignored."""
        self.session = Session(self.backend, self.bundle.manifest.model.context_length)
        steps = self.session.generate(
            list(map(int, prompt_ids)), sampling, Stops(max_new_tokens=num_tokens), draft_length
        )
        return [token_id for step in steps for token_id in step.token_ids]

    def close(self) -> None:
        self.backend.close()


@pytest.fixture(scope="session")
def float32(export_tiny, runtime):
    with closing(LoadedBundle(export_tiny("float32"), runtime)) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def loaded(export_tiny, recipe, runtime):
    with closing(LoadedBundle(export_tiny(recipe), runtime)) as bundle:
        yield bundle


@pytest.fixture(scope="session")
def original(tiny) -> WholeModel:
    import torch

    torch.set_num_threads(1)  # the tiny model is too small for more
    return WholeModel(tiny.model, tiny.drafter)
