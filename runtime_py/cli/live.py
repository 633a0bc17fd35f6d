"""An answer as it comes: its text on stdout, its figures on stderr."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from runtime_py import Piece
from runtime_py.terminal.console import say, say_model_text

RECENT = 16  # rounds

TERMINAL_S, LINES_S = 0.1, 1.0  # between two updates
LEAST_ROWS = 3  # two for the text: terminals cannot scroll a single row
# Control sequences of the VT100, which every terminal understands.
_SAVE, _RESTORE, _WHOLE_SCREEN, _CLEAR_LINE = "\x1b7", "\x1b8", "\x1b[r", "\x1b[2K"


def show(answer: Iterable[Piece], *, shown: bool, stats: bool) -> None:
    """Run a generation to its end; what follows begins on a line of its own, whatever ends it.

    Args:
        answer: its pieces, which come while it runs.
        shown: write its text.
        stats: show the figures of the last rounds.
    """
    recent = RecentRounds()
    try:
        with status_line(stats) as update:
            for piece in answer:
                if shown:
                    say_model_text(piece.text)
                recent.add(piece)
                update(recent.status)
    finally:
        if shown:
            say()


class RecentRounds:
    """The figures of the last RECENT rounds."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, Piece]] = deque(maxlen=RECENT)  # with their times, in s

    def add(self, piece: Piece) -> None:
        """A piece that has just come."""
        if piece.token_ids:
            self._pieces.append((time.perf_counter(), piece))

    def status(self) -> str:
        """K of the last round; accepted drafts and tokens per second of all."""
        pieces = [piece for _, piece in self._pieces]
        parts = [f"K {pieces[-1].num_drafted if pieces else 0}"]
        accepted = [piece.num_accepted for piece in pieces if piece.num_drafted]
        if accepted:
            parts.append(f"{sum(accepted) / len(accepted):.1f} drafts accepted per round")
        elapsed_s = self._pieces[-1][0] - self._pieces[0][0] if pieces else 0
        if elapsed_s > 0:
            num_tokens = sum(len(piece.token_ids) for piece in pieces[1:])
            parts.append(f"{num_tokens / elapsed_s:.1f} tokens/s")
        return " · ".join(parts)


@contextmanager
def status_line(wanted: bool = True) -> Iterator[Callable[[Callable[[], str]], None]]:
    """Yield a function that shows a line; it takes what makes the line, and skips most calls.

    On a terminal of LEAST_ROWS or more the line stays in the last row while the rows above scroll;
    elsewhere a new line appears once a second.
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
    rows = 0  # of the terminal while its last row is reserved, else 0

    def write(text: str) -> None:
        sys.stdout.flush()  # so that the cursor is where the text ends
        sys.stderr.write(text)
        sys.stderr.flush()

    def keep(lines: int) -> None:
        nonlocal rows
        if rows:
            write(f"{_SAVE}{_WHOLE_SCREEN}\x1b[{rows};1H{_CLEAR_LINE}{_RESTORE}")
        rows = lines if lines >= LEAST_ROWS else 0
        if rows:
            # A newline scrolls the text in the last row up, out of the way.
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
