"""Every test run keeps its own cache, away from the user's, and shows errors nobody foresaw."""

import os
from pathlib import Path

import pytest

from runtime_py.terminal.command import TRACEBACK

# No test can pass because an unforeseen error of ours became one line; for every process it starts.
os.environ[TRACEBACK] = "1"

# Files that take more than ten seconds, in the order in which workers take them (with
# --no-loadscope-reorder): the first begins to make the tiny model's bundles, the last six want
# them, and the short files come after these, so that all workers end together.
LONG_FILES = (
    "end_to_end/test_lossless.py",
    "exporter/lower/onnx/test_lower.py",
    "exporter/lower/litert/test_widths.py",
    "end_to_end/test_int8_rows.py",
    "exporter/lower/litert/test_lower.py",
    "end_to_end/test_ended_exports.py",
    "end_to_end/test_fuzz_bundles.py",
    "end_to_end/test_experts.py",
    "end_to_end/test_export_errors.py",
    "exporter/lower/litert/test_oracle.py",
    "exporter/graph/test_laws.py",
    "exporter/lower/executorch/test_memory.py",
    "exporter/lower/test_stored_types.py",
    "exporter/lower/litert/test_tied_table.py",
    "exporter/lower/test_kept_integers.py",
    "end_to_end/test_released_rows.py",
    "end_to_end/test_run.py",
    "end_to_end/test_official_commands.py",
    "end_to_end/test_pages.py",
    "end_to_end/test_sampling.py",
    "end_to_end/test_official_runtime.py",
)


@pytest.hookimpl(trylast=True)  # pytest's own order of fixtures stays, within a file
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
