"""Every test run keeps its own cache, away from the user's, and shows errors nobody foresaw."""

import os

import pytest

from runtime_py.terminal.command import TRACEBACK

# No test can pass because an unforeseen error of ours became one line; for every process it starts.
os.environ[TRACEBACK] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
