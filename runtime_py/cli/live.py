"""Figures on stderr while text streams to stdout."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runtime_py.terminal.console import say

TERMINAL_S, LINES_S = 0.1, 1.0  # between two updates
LEAST_ROWS = 3  # two for the text: no terminal scrolls a single row
# The control sequences of a VT100, which every terminal knows.
_SAVE, _RESTORE, _WHOLE_SCREEN, _CLEAR_LINE = "\x1b7", "\x1b8", "\x1b[r", "\x1b[2K"


@contextmanager
def status_line(wanted: bool = True) -> Iterator[Callable[[Callable[[], str]], None]]:
    """Yields a function to be called often, with what makes the line; it shows some of them.

    On a terminal the line stays in the last row, while the rows above it scroll, if there are
    LEAST_ROWS or more; elsewhere it is one of many, once a second.
    """
    if not wanted:
        yield lambda _: None
    elif sys.stderr.isatty() and sys.stdout.isatty():
        with _last_row() as show:
            yield _seldom(show, TERMINAL_S)
    else:
        yield _seldom(_write_line, LINES_S)


def _write_line(line: str) -> None:
    say(f"[{line}]", err=True)


def _seldom(show: Callable[[str], None], interval_s: float) -> Callable[[Callable[[], str]], None]:
    last = -interval_s

    def update(make: Callable[[], str]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= interval_s:
            last = now
            show(make())

    return update


@contextmanager
def _last_row() -> Iterator[Callable[[str], None]]:
    rows = 0  # of the terminal, while its last one is kept

    def write(text: str) -> None:
        sys.stdout.flush()  # the cursor is where the text ends
        sys.stderr.write(text)
        sys.stderr.flush()

    def keep(lines: int) -> None:
        nonlocal rows
        if rows:
            write(f"{_SAVE}{_WHOLE_SCREEN}\x1b[{rows};1H{_CLEAR_LINE}{_RESTORE}")
        rows = lines if lines >= LEAST_ROWS else 0
        if rows:
            # A new line scrolls what stands in the last row up, out of the way.
            write(f"\n\x1b[A{_SAVE}\x1b[1;{rows - 1}r{_RESTORE}")

    def show(line: str) -> None:
        size = shutil.get_terminal_size()
        if size.lines != rows:
            keep(size.lines)
        if rows:
            line = line[: size.columns - 1]
            write(f"{_SAVE}\x1b[{rows};1H{_CLEAR_LINE}\x1b[7m{line}\x1b[0m{_RESTORE}")

    try:
        yield show
    finally:
        keep(0)
