"""The page's modules, run by Node; tests/end_to_end/test_web.py runs the page in a browser."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from exporter.bundle.writer import PAGE, add_page
from exporter.config import load_size
from runtime_py.formats.litertlm import read_sections
from tests.golden_traces.record import GOLDEN
from tests.manifest_schema import CASES

HERE = Path(__file__).parent
TOKENIZER = load_size("tiny").model / "tokenizer.json"
CONTAINER = HERE.parents[1] / "runtime_py" / "backends" / "toy.litertlm"
needs_node = pytest.mark.skipif(
    not shutil.which("node"), reason="no node: the page's modules were NOT run"
)


def node(script: str, *arguments: Path):
    """What a script beside this file prints of the page's modules."""
    command = ["node", HERE / script, PAGE / "web", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_the_pages_loop_repeats_the_golden_traces():
    recorded = json.loads(GOLDEN.read_text())
    fixed = [
        trace
        for trace in recorded["traces"]
        if all(turn["draft_length"] != "auto" for turn in trace["turns"])
    ]
    assert len(fixed) > 100
    expected = {name: len(items) for name, items in recorded.items() if name != "decisions"}
    replayed = node("golden_traces.mjs", GOLDEN, TOKENIZER)
    assert replayed == expected | {"traces": len(fixed)}


@needs_node
def test_the_pages_readers_refuse_damaged_files(tmp_path):
    recorded = json.loads(GOLDEN.read_text())["checks"][0]["reference"]
    reference = tmp_path / "reference.npz"
    reference.write_bytes(base64.b64decode(recorded))
    found = node("page_files.mjs", CONTAINER, reference, TOKENIZER)
    sections = read_sections(CONTAINER)
    assert found == [[section.model_type, section.begin, section.end] for section in sections]


@needs_node
def test_the_page_refuses_and_reads_the_manifests_that_python_does():
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    refused, accepted = node("manifest_cases.mjs", CASES)
    assert refused == len(cases["refused_by_schema"]) + len(cases["refused_by_rules"])
    assert accepted == len(cases["accepted"]) + len(cases["accepted_of_a_newer_minor"])


@needs_node
def test_sessions_take_turns_and_a_superseded_generation_says_so():
    first, second = node("turns.mjs")
    assert first == second
    assert first.startswith("this answer cannot go on: another one has begun")


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


def test_no_text_of_a_bundle_becomes_markup():
    for path in PAGE.rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in text, path
