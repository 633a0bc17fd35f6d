"""The one place where text reaches stdout and stderr.

Nothing that came from elsewhere acts on a terminal, and a character that the output's encoding has
not is replaced.
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

STDOUT = "stdout"  # the file name in errors of writing to it
MIN_WIDTH = 60  # columns of a table: a narrower terminal wraps it, and nothing is left out
_DESCRIPTORS = {"stdin": 0, "stdout": 1, "stderr": 2}


class Screen(Console):
    """Tables and lines whose text is no markup, on stdout or stderr."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if not stderr:  # where only progress is shown, which must not wrap
            self.width = max(self.width, MIN_WIDTH)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def new_table(title: str, **options: Any) -> Table:
    """An empty table; its cells are made fit to be shown where Screen prints them."""
    return Table(title=one_line(title), **options)


def say(text: str = "", *, err: bool = False) -> None:
    """Lines on stdout, or on stderr, where what cannot be written is dropped."""
    with contextlib.suppress(*([OSError] if err else [])):
        _write(sys.stderr if err else sys.stdout, f"{printable(text)}\n")


def say_model_text(piece: str) -> None:
    """A piece of what a model says, on stdout: as it is where that is a file or a pipe."""
    _write(sys.stdout, printable(piece) if sys.stdout.isatty() else piece)


def _write(stream: TextIO, text: str) -> None:
    # Not by click's echo, which takes control sequences out of what goes into a file, and writes
    # UTF-8 where ASCII is asked for.
    stream.write(text)
    stream.flush()


class _Stdout(io.FileIO):
    """Says whose error it is, as those of files do."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


def prepare_streams() -> None:
    """Make stdin, stdout and stderr usable, whatever they are.

    A closed one becomes the null device: the next file to be opened would take its number, and
    native libraries would write their messages into it.
    """
    for name, descriptor in _DESCRIPTORS.items():
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
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
    """What cannot be written is not tried again when the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
