"""The one place where text reaches stdout and stderr.

Nothing that came from elsewhere acts on a terminal, and a character that the output's encoding has
not is replaced.
"""

import contextlib
import io
import os
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime_py.printable import one_line, printable

_DESCRIPTORS = {"stdin": 0, "stdout": 1, "stderr": 2}


class Screen(Console):
    """Tables and lines whose text is no markup, on stdout or stderr."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def new_table(title: str, **options: Any) -> Table:
    """An empty table; its cells are made fit to be shown where Screen prints them."""
    return Table(title=one_line(title), **options)


def say(text: str = "", *, err: bool = False) -> None:
    """Lines on stdout, or on stderr, where what cannot be written is dropped."""
    with contextlib.suppress(*([OSError] if err else [])):
        click.echo(printable(text), err=err)


def say_model_text(piece: str) -> None:
    """A piece of what a model says, on stdout: as it is where that is a file or a pipe."""
    # color: click removes control sequences from what it writes to a file else.
    click.echo(printable(piece) if sys.stdout.isatty() else piece, nl=False, color=True)


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
        stream = getattr(sys, name)
        if stream is None:
            mode = "w" if descriptor else "r"
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            # A prompt that is not UTF-8 is refused by the tokenizer, wherever it came from.
            stream.reconfigure(errors="replace" if descriptor else "surrogateescape")


def drop_stdout() -> None:
    """What cannot be written is not tried again when the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout_fails() -> bool:
    """Whether what was said last is still waiting, because it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False
