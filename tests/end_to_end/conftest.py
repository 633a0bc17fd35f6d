"""The tiny model, exported once per recipe for every runtime, and run."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from exporter.config import load_size
from runtime_py.backends import SessionOptions
from runtime_py.backends.load import BACKENDS, load_backend
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.sampling import GREEDY
from runtime_py.decoding.session import Session, Stops
from tests.whole_model import WholeModel

ROOT = Path(__file__).parents[2]
NUM_TOKENS = 64
RUNTIMES = tuple(BACKENDS)
RECIPES = ("float32", "int8", "int4")


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
    """The bundle of the tiny model with a recipe; all are begun when the first is asked for.

    The workers of one test run share the bundles: the first to come makes one, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bundles"
    folder.mkdir(exist_ok=True)

    def export(recipe: str) -> Path:
        with FileLock(folder / f"{recipe}.lock"):
            return folder / recipe if (folder / recipe).exists() else make(recipe)

    def make(recipe: str) -> Path:
        done = run(
            "gemma-export",
            *("--target", "raspberry-pi", "--size", "tiny", "--quantize", recipe),
            *(option for runtime in RUNTIMES for option in ("--runtime", runtime)),
            *("--output", folder / recipe, "--no-check"),
            env={"OMP_NUM_THREADS": "1"},  # one core each
        )
        assert done.returncode == 0, done.stderr
        return folder / recipe

    with ThreadPoolExecutor(max_workers=2) as pool:
        made = {recipe: pool.submit(export, recipe) for recipe in RECIPES}
        yield lambda recipe: made[recipe].result()
        pool.shutdown(cancel_futures=True)


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
