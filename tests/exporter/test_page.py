"""The page's modules, run by Node; tests/end_to_end/test_web.py runs the page in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from exporter.bundle import PAGE, add_page
from exporter.config import load_size
from tests.golden_traces.record import GOLDEN

REPLAY = Path(__file__).with_name("golden_traces.mjs")


@pytest.mark.skipif(not shutil.which("node"), reason="no node: the page's modules were NOT run")
def test_the_pages_loop_repeats_the_golden_traces():
    tokenizer = load_size("tiny").model / "tokenizer.json"
    done = subprocess.run(
        ["node", str(REPLAY), str(PAGE / "web"), str(GOLDEN), str(tokenizer)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    recorded = json.loads(GOLDEN.read_text())
    fixed = [
        trace
        for trace in recorded["traces"]
        if all(turn["draft_length"] != "auto" for turn in trace["turns"])
    ]
    replayed = {name: len(items) for name, items in recorded.items() if name != "decisions"}
    assert json.loads(done.stdout) == replayed | {"traces": len(fixed)}
    assert len(fixed) > 100


def test_all_that_the_page_loads_lies_beside_it(tmp_path):
    add_page(tmp_path)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    loaded = {tmp_path / "index.html"}
    for path in files:
        text = path.read_text(encoding="utf-8")
        names = re.findall(r'(?:from|src=) ?"([^"]+\.js)"', text)
        loaded |= {(path.parent / name).resolve() for name in names}
        assert "://" not in text, f"{path.name} names a host"
    assert loaded == files
