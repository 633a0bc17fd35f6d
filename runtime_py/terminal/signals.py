"""Ctrl-C, a closed terminal and `kill` unwind the program as errors do, and end it in one line."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

_AGAIN_S = 0.01
_CTRL_C_S, _GRACE_S = 0.5, 5.0
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interrupted(BaseException):
    """A signal asks for the end.

    No KeyboardInterrupt: click makes that exit code 1, and CPython, where it has passed an exec(),
    an end by the signal whatever the exit code.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.is_said = False  # by a program that ran in ours

    @property
    def is_ctrl_c(self) -> bool:
        return self.number == signal.SIGINT


@contextlib.contextmanager
def interruptible(program: str) -> Iterator[None]:
    """Let signals unwind the block, then end with one line and exit code 128 + the signal's number.

    Ignored ones stay ignored, as `nohup` and a shell's background jobs want it.
    """
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    hook, sys.unraisablehook = sys.unraisablehook, _raise_again
    for number in heeded:
        signal.signal(number, _interrupt)
    try:
        yield
    except BaseException as error:
        found = interruption(error)
        if found is None:
            raise
        if not found.is_said:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr has gone
                sys.stderr.write(f"{program}: interrupted\n")
        sys.exit(128 + found.number)
    finally:
        for number in heeded:  # a second one ends what the interpreter does at its end
            signal.signal(number, signal.SIG_DFL)
        sys.unraisablehook = hook


def run_to_its_end(command: Sequence[str]) -> int:
    """Run a program that ends with ours; its exit code."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except BaseException as error:
            _end(process)
            if isinstance(error, Interrupted):
                error.is_said = process.wait() > 128
            raise


def _end(process: "subprocess.Popen[bytes]") -> None:
    # A terminal's Ctrl-C has reached it too, and another signal would disturb what it cleans up.
    for ask, grace_s in ((process.poll, _CTRL_C_S), (process.terminate, _GRACE_S)):
        ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
            return
    process.kill()


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code is _raise_again.__code__:  # not there, it would be dropped again
            _send_later(number)
            return
        frame = frame.f_back
    raise Interrupted(number)


def interruption(error: BaseException | None) -> Interrupted | None:
    """The one behind an error: an extension module interrupted as it loads makes its own of it."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error


def _raise_again(unraisable: Any) -> None:
    """Python drops what is raised in a finalizer or a callback of C: send that signal once more."""
    if isinstance(unraisable.exc_value, Interrupted):
        _send_later(unraisable.exc_value.number)
    else:
        sys.__unraisablehook__(unraisable)


def _send_later(number: int) -> None:
    timer = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
