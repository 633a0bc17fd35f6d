"""Shared by gemma-run and gemma-export: an error is one line and exit code 1."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from runtime_py.errors import RunError
from runtime_py.terminal.console import STDOUT, drop_stdout, prepare_streams, say
from runtime_py.terminal.printable import one_line, shown
from runtime_py.terminal.signals import interruption

# The environment variable that lets an unexpected error show its traceback; the tests set it.
TRACEBACK = "GEMMA_EXPORT_TRACEBACK"
_PACKAGES = Path(__file__).parents[2]
_MOST, _LAST = 4000, 400  # characters of an error line, and of its end, which says what to do next


class ErrorLine(click.Command):
    """A command, or a group of them, that never ends with a traceback."""

    program: ClassVar[str]
    input_errors: ClassVar[tuple[type[Exception], ...]] = (RunError,)

    def main(self, *args: Any, **options: Any) -> Any:
        prepare_streams()
        try:
            return super().main(*args, **options)
        except self.input_errors as error:
            self._fail(str(error))
        except MemoryError:
            self._fail("out of memory; end other programs, or use a smaller model or --context")
        except OSError as error:
            self._fail_system(error)
        except Exception as error:
            self._fail_unforeseen(error)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _fit_to_be_shown():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _fit_to_be_shown():
            return super().invoke(ctx)

    def _fail(self, message: str) -> NoReturn:
        line = one_line(message)
        if len(line) > _MOST:
            line = f"{line[: _MOST - _LAST]} ... {line[-_LAST:]}"
        say(f"{self.program}: error: {line}", err=True)
        sys.exit(1)

    def _fail_system(self, error: OSError) -> NoReturn:
        """A file that cannot be read or written, or stdout."""
        if error.filename is None:
            self._fail_unforeseen(error)
        if error.filename == STDOUT:
            drop_stdout()
        self._fail(f"{os.fsdecode(error.filename)}: {error.strerror}")

    def _fail_unforeseen(self, error: Exception) -> NoReturn:
        if os.environ.get(TRACEBACK) or interruption(error):
            raise error
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGES)]
        where = ours[-1] if ours else frames[-1]
        self._fail(
            f"{type(error).__name__}: {shown(error, 300)} ({Path(where.filename).name}, line "
            f"{where.lineno}); this should not happen: please report it with the traceback that "
            f"{TRACEBACK}=1 shows"
        )


@contextmanager
def _fit_to_be_shown() -> Iterator[None]:
    """Usage errors repeat what was typed, or the file names that a shell's * stands for."""
    try:
        yield
    except NoArgsIsHelpError:  # the help
        raise
    except click.UsageError as error:
        raise click.UsageError(one_line(error.format_message()), error.ctx) from None
