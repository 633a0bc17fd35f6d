"""Ctrl-C, a closed terminal and `kill` unwind the program like errors, and end it with one line."""

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
    """A signal asked the program to end.

    Not a KeyboardInterrupt: click turns that into exit code 1, and CPython, once it has run an
    exec(), into an end by the signal whatever the exit code.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.is_said = False  # a child program has printed the line already

    @property
    def is_ctrl_c(self) -> bool:
        return self.number == signal.SIGINT


@contextlib.contextmanager
def interruptible(program: str) -> Iterator[None]:
    """Let signals unwind the block, then end with one line and exit code 128 + the signal's number.

    Ignored signals stay ignored, as `nohup` and a shell's background jobs expect.
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
            with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed
                sys.stderr.write(f"{program}: interrupted\n")
        sys.exit(128 + found.number)
    finally:
        for number in heeded:  # a second one ends the interpreter's own shutdown
            signal.signal(number, signal.SIG_DFL)
        sys.unraisablehook = hook


def run_to_its_end(command: Sequence[str]) -> int:
    """Run a program, which ends if ours does; returns its exit code."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except BaseException as error:
            _end(process)
            if isinstance(error, Interrupted):
                error.is_said = process.wait() > 128
            raise


def _end(process: "subprocess.Popen[bytes]") -> None:
    # A terminal sends Ctrl-C to both programs, and a second signal would disturb its cleanup.
    for ask, grace_s in ((process.poll, _CTRL_C_S), (process.terminate, _GRACE_S)):
        ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
            return
    process.kill()


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code is _raise_again.__code__:  # raised there, it would be dropped again
            _send_later(number)
            return
        frame = frame.f_back
    raise Interrupted(number)


def interruption(error: BaseException | None) -> Interrupted | None:
    """The signal behind an error: a module interrupted while it loads raises its own error."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error


def _raise_again(unraisable: Any) -> None:
    """Python drops what a finalizer or a C callback raises: send that signal again."""
    if isinstance(unraisable.exc_value, Interrupted):
        _send_later(unraisable.exc_value.number)
    else:
        sys.__unraisablehook__(unraisable)


def _send_later(number: int) -> None:
    timer = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
