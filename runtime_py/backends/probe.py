"""Load one runtime, and perhaps a model, in a separate process that may crash.

A runtime may not be compiled for this processor, and crafted graphs can crash or hang the native
code that runs them, whatever their checksums. The process has this user's rights: it protects the
command, not the machine.

Its arguments: RUNTIME [MODEL SECONDS THREADS PROVIDER ...]
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime_py.backends import SessionOptions, default_num_threads
from runtime_py.device.own_process import own_module
from runtime_py.errors import RunError

TIMEOUT_S = 120.0  # a cold start from a slow SD card
SLOWEST = 10e6  # bytes per second at which a model is loaded
# A model may take LEAST_S, its size at SLOWEST, and SLOW times what loading the runtime took.
LEAST_S, SLOW = 10.0, 10.0

PROGRAM = own_module("runtime_py.backends.probe")
_ALARM = getattr(signal, "SIGALRM", 0)


def _load_litert() -> None:
    from runtime_py.backends.litert.library import environment
    from runtime_py.backends.litert.model import native_messages_hidden

    with native_messages_hidden():
        environment()


def _load_executorch() -> None:
    from runtime_py.backends.executorch.library import load_library

    load_library()


def _load_onnx() -> None:
    import onnxruntime

    onnxruntime.get_available_providers()


def _load_official() -> None:
    from litert_lm import _ffi

    _ffi._get_lib()  # else the library is loaded only with the first engine


LOAD: dict[str, Callable[[], None]] = {
    "litert": _load_litert,
    "executorch": _load_executorch,
    "onnx": _load_onnx,
    "official": _load_official,
}


def probe(runtime: str) -> str | None:
    """Why a runtime does not load on this machine, in one line; None if it does."""
    return _why_not([runtime], TIMEOUT_S)[1]


def probe_model(runtime: str, model: Path, size_bytes: int, options: SessionOptions) -> None:
    """Load a model and call each of its graphs in a separate process, which costs a second load.

    An error that the model's backend reports is left for the next load to report.

    Args:
        size_bytes: of all files that are loaded; sets the time limit.

    Raises:
        RunError: if the process crashed or hung.
    """
    threads = options.num_threads or default_num_threads()
    limit_s = LEAST_S + size_bytes / SLOWEST
    arguments = [runtime, str(model), str(limit_s), str(threads), *options.providers]
    crashed, why = _why_not(arguments, (1 + SLOW) * TIMEOUT_S + limit_s)
    if crashed:
        raise RunError(
            f"{model}: tried in a process of its own, {why}; the file is damaged, or was made to "
            "do that; copy it again from a source you trust"
        )


def _why_not(arguments: Sequence[str], timeout_s: float) -> tuple[bool, str | None]:
    """Whether the process crashed or hung, and why it failed, in one line; None if it did not."""
    try:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True, f"it did not load within {timeout_s:.0f} s"
    except OSError as error:
        return False, f"python does not start another process ({error})"
    if done.returncode == 0:
        return False, None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = lines[-1] if lines else "no message"
    if done.returncode == -_ALARM:
        return True, "it did not come to an end in the time that files of this size take"
    if done.returncode < 0:
        return True, f"it ends the process with {_signal_name(-done.returncode)} ({said})"
    return False, said


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _use(
    runtime: Any, model: str, limit_s: str, threads: str, *providers: str, load_s: float
) -> None:
    from runtime_py.backends.load import BACKENDS

    _leave_no_core()
    if sys.platform != "win32":  # ends the process even if native code hangs
        signal.setitimer(signal.ITIMER_REAL, float(limit_s) + SLOW * load_s)
    options = SessionOptions(num_threads=int(threads), providers=providers)
    with contextlib.closing(BACKENDS[runtime](Path(model), options)) as backend:
        backend.prefill([0], 0)
        for width in backend.verify_widths:
            _, hidden = backend.verify([0] * min(width, backend.cache_length - 1), 1)
        if backend.has_drafter:
            backend.draft(0, hidden[0], 1)


def _leave_no_core() -> None:
    """Write no core dump: it would be as large as the mapped model."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has none
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    runtime, *model = sys.argv[1:]
    try:
        begun = time.monotonic()
        LOAD[runtime]()
        if model:
            _use(runtime, *model, load_s=time.monotonic() - begun)
    except (RunError, ImportError, OSError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        sys.stderr.write(f"{lines[0]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
