"""Figures while text streams: in the last row of a terminal, or a line a second."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime_py import Piece
from runtime_py.cli import live
from runtime_py.cli.live import RecentRounds, status_line

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from runtime_py.cli.live import status_line
with status_line() as update:
    for number in range(3):
        sys.stdout.write(f"text {number}\\n")
        update(lambda: "K 3")
print("after")
"""


def test_not_wanted_it_shows_nothing_and_makes_no_line(capsys):
    with status_line(False) as update:
        update(lambda: pytest.fail("made for nobody"))
    assert capsys.readouterr().err == ""


def test_elsewhere_a_line_a_second(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    with status_line() as update:
        for step in range(21):
            now[0] = 100 + step / 8
            update(lambda number=step: f"step {number}")
    assert capsys.readouterr().err.splitlines() == ["[step 0]", "[step 8]", "[step 16]"]


def run_in_terminal() -> str:
    primary, secondary = pty.openpty()
    try:
        environment = os.environ | {"LINES": "24", "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            stdout=secondary,
            stderr=secondary,
            env=environment,
            timeout=60,
            check=False,
        )
        time.sleep(0.05)
        assert done.returncode == 0
        return os.read(primary, 1 << 16).decode()
    finally:
        os.close(primary)
        os.close(secondary)


def test_on_a_terminal_the_last_row_is_kept_and_given_back():
    shown = run_in_terminal()
    assert shown.count("K 3") == 1  # three calls within a tenth of a second
    rows_above, last_row = "\x1b[1;23r", "\x1b[24;1H"
    assert shown.index(rows_above) < shown.index(last_row) < shown.index("K 3")
    assert shown.count("\x1b7") == shown.count("\x1b8")  # the cursor goes back where it was
    assert shown.index("text 2") < shown.index("\x1b[r") < shown.index("after")


def test_the_status_is_of_the_last_rounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "perf_counter", lambda: now[0])
    recent = RecentRounds()
    assert recent.status() == "K 0"
    for second in range(40):
        now[0] = second
        recent.add(round_of(0 if second < 20 else 3))
    assert recent.status() == "K 3 · 3.0 drafts accepted per round · 4.0 tokens/s"
    now[0] = 40.0
    recent.add(round_of(0))
    assert recent.status().startswith("K 0 · 3.0 drafts accepted")


def round_of(num_drafts):
    tokens = (5,) * (1 + num_drafts)
    return Piece(text="", token_ids=tokens, num_drafted=num_drafts, num_accepted=num_drafts)
