"""The one place where text reaches stdout and stderr.

Foreign text cannot control the terminal, and characters that the output's encoding lacks are
replaced.
"""

import contextlib
import io
import os
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime_py.terminal.printable import one_line, printable

STDOUT = "stdout"  # the file name in its write errors
MIN_WIDTH = 60  # columns of a table; a narrower terminal wraps it, so nothing is cut
_DESCRIPTORS = {"stdin": 0, "stdout": 1, "stderr": 2}


class Screen(Console):
    """Prints tables and lines to stdout or stderr; text is never markup."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if not stderr:  # stderr shows progress bars, which must not wrap
            self.width = max(self.width, MIN_WIDTH)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def new_table(title: str, **options: Any) -> Table:
    """An empty table; Screen makes its cells printable."""
    return Table(title=one_line(title), **options)


def say(text: str = "", *, err: bool = False) -> None:
    """Write lines to stdout, or to stderr, where a write error is ignored."""
    with contextlib.suppress(*([OSError] if err else [])):
        _write(sys.stderr if err else sys.stdout, f"{printable(text)}\n")


def say_model_text(piece: str) -> None:
    """Write a model's text to stdout: unchanged into a file or pipe, printable on a terminal."""
    _write(sys.stdout, printable(piece) if sys.stdout.isatty() else piece)


def _write(stream: TextIO, text: str) -> None:
    # Not click.echo: it strips control sequences from what goes into a file, and writes UTF-8 where
    # ASCII is asked for.
    stream.write(text)
    stream.flush()


class _Stdout(io.FileIO):
    """Names itself in its write errors, as files do."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


def prepare_streams() -> None:
    """Make stdin, stdout and stderr usable, even where they are closed.

    A closed one becomes the null device. Otherwise the next file to be opened would get its number,
    and native libraries would write their messages into that file.
    """
    for name, descriptor in _DESCRIPTORS.items():
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            # A prompt that is not UTF-8 is refused by the tokenizer, wherever it came from.
            stream.reconfigure(errors="replace" if descriptor else "surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper) and _descriptor(sys.stdout) == 1:
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Stdout(1, "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="replace",
            line_buffering=True,
        )


def _descriptor(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except OSError:  # in memory, as in tests
        return None


def drop_stdout() -> None:
    """Discard what is not written yet, so that Python does not try again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
