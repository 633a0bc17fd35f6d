"""Load one runtime, in a process of its own: what it is not compiled for ends the process.

python -m runtime_py.probe RUNTIME
"""

import signal
import subprocess
import sys
from collections.abc import Callable

from runtime_py.errors import RunError

TIMEOUT_S = 120  # a cold start from a slow card


def _load_litert() -> None:
    from runtime_py.backends.litert_library import environment
    from runtime_py.backends.litert_model import native_messages_hidden

    with native_messages_hidden():
        environment()


def _load_executorch() -> None:
    from runtime_py.backends.executorch_library import load_library

    load_library()


def _load_onnx() -> None:
    import onnxruntime

    onnxruntime.get_available_providers()


def _load_official() -> None:
    from litert_lm import _ffi

    _ffi._get_lib()  # the package itself loads its library only with the first engine


LOAD: dict[str, Callable[[], None]] = {
    "litert": _load_litert,
    "executorch": _load_executorch,
    "onnx": _load_onnx,
    "official": _load_official,
}


def probe(runtime: str) -> str | None:
    """Why a runtime does not load here, in one line; None if it does."""
    command = [sys.executable, "-m", "runtime_py.probe", runtime]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it did not load within {TIMEOUT_S} s"
    except OSError as error:
        return f"python does not start another process ({error})"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = lines[-1] if lines else "no message"
    if done.returncode < 0:
        return f"it ends the process with {_signal_name(-done.returncode)} ({said})"
    return said


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> int:
    try:
        LOAD[sys.argv[1]]()
    except (RunError, ImportError, OSError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        sys.stderr.write(f"{lines[0]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
