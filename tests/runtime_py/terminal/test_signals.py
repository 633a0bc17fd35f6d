"""What Ctrl-C, a closed terminal and `kill` leave: one line, a whole terminal, nothing else."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROGRAM = """
import os, signal, subprocess, sys, time
from runtime_py.terminal.signals import Interrupted, interruptible, run_to_its_end
def end(number=None):
    os.kill(os.getpid(), number or int(sys.argv[1]))
with interruptible("gemma-run"):
{body}
"""
SHOWN, HIDDEN = "\x1b[?25h", "\x1b[?25l"


def heed():
    """A shell's background job, which may run the tests, ignores SIGINT, and so do its children."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def program(body: str, *arguments: object) -> list[str]:
    text = PROGRAM.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))
    return [sys.executable, "-c", text, *map(str, arguments)]


def run(body: str, number: int, preexec=heed) -> subprocess.CompletedProcess:
    return subprocess.run(
        program(body, int(number)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=preexec,
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_one_line_and_the_exit_code_that_shells_know(number):
    body = """
try:
    end(); time.sleep(20)
finally:
    print("cleaned up")
"""
    done = run(body, number)
    assert done.returncode == 128 + number
    assert (done.stdout, done.stderr) == ("cleaned up\n", "gemma-run: interrupted\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_ignored_stays_ignored(number):
    done = run("end(); print('goes on')", number, lambda: signal.signal(number, signal.SIG_IGN))
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


@pytest.mark.parametrize(
    "body",
    [
        # Python drops what is raised here.
        """
class Finalized:
    def __del__(self): end(); sum(range(1000))
Finalized(); time.sleep(20)
""",
        # And here, where it is sent once more.
        """
import threading
start = threading.Timer.start
def late(timer):
    threading.Timer.start = start; start(timer); time.sleep(0.5)
threading.Timer.start = late
class Finalized:
    def __del__(self): end(); sum(range(1000))
Finalized(); time.sleep(20)
""",
        # An extension module's initialization makes another exception of it.
        """
try:
    end(); time.sleep(20)
except Interrupted as error:
    raise ImportError("initialization failed") from error
""",
        "import click\nclick.command()(end)([])",
        "exec('end(); import time; time.sleep(20)')",
    ],
)
def test_no_place_swallows_it(body):
    done = run(body, signal.SIGINT)
    assert (done.returncode, done.stderr) == (130, "gemma-run: interrupted\n")


def test_a_second_one_ends_what_the_interpreter_does_at_its_end():
    body = "import atexit\natexit.register(lambda: (end(), print('survived')))\nend()"
    done = run(body, signal.SIGINT)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
    assert done.stderr == "gemma-run: interrupted\n"


CHILD = """
import os, time
from runtime_py.terminal.signals import interruptible
with interruptible("child"):
    print(os.getpid(), flush=True)
    os.kill(os.getppid(), {number})
    {and_then}
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("and_then", "said"),
    [
        ("pass", "child: interrupted\n"),
        ("os.kill(os.getpid(), 2)", "child: interrupted\n"),  # as a terminal's Ctrl-C does
        ("os.kill(os.getpid(), 9)", "gemma-run: interrupted\n"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_child_ends_with_it_and_one_of_them_says_so(number, and_then, said):
    child = CHILD.format(number=int(number), and_then=and_then)
    done = run(f"run_to_its_end([sys.executable, '-c', {child!r}])", number)
    assert (done.returncode, done.stderr) == (128 + number, said)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_the_text_that_it_ends_gets_its_new_line():
    body = """
from runtime_py import Piece
from runtime_py.cli.live import show
def answer():
    yield Piece(text="half a sen", token_ids=(5,), num_drafted=0, num_accepted=0)
    end(); time.sleep(20)
show(answer(), shown=True, stats=False)
"""
    done = run(body, signal.SIGTERM)
    assert (done.stdout, done.stderr) == ("half a sen\n", "gemma-run: interrupted\n")


@pytest.mark.parametrize("command", ["exporter", "runtime_py"])
@pytest.mark.parametrize("module", ["click", "numpy"])
def test_while_modules_are_imported(tmp_path, command, module):
    (tmp_path / f"{module}.py").write_text(
        f"import os, signal; os.kill(os.getpid(), {int(signal.SIGINT)}); import time; time.sleep(9)"
    )
    done = subprocess.run(
        [sys.executable, "-m", command, "--help"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=heed,
    )
    name = {"exporter": "gemma-export", "runtime_py": "gemma-run"}[command]
    assert (done.returncode, done.stderr) == (130, f"{name}: interrupted\n")


def on_terminal(body: str, number: int, size: tuple[int, int] = (24, 80)) -> tuple[int, str]:
    """(exit code, all that a terminal of rows x columns was sent)"""
    primary, secondary = pty.openpty()
    fcntl.ioctl(primary, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    environment = {key: os.environ[key] for key in os.environ if key not in ("LINES", "COLUMNS")}
    with subprocess.Popen(
        program(body, int(number)),
        cwd=ROOT,
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env={**environment, "TERM": "xterm"},
        preexec_fn=heed,
    ) as process:
        os.close(secondary)
        shown = b""
        with open(primary, "rb", buffering=0) as terminal:
            while piece := _read(terminal):
                shown += piece
    return process.returncode, shown.decode()


def _read(terminal) -> bytes:
    try:
        return terminal.read(1 << 16)
    except OSError:  # Linux's way to say that the other side has gone
        return b""


PROGRESS = """
from runtime_py.cli import render
with render.progress("check onnx", 3, "prompts") as update:
    update(1); time.sleep(0.3); {end}
"""
STATS = """
from runtime_py.cli.live import status_line
with status_line() as update:
    print("text"); update(lambda: "K 3"); {end}
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_the_cursor_is_shown_again(number):
    code, shown = on_terminal(PROGRESS.format(end="end(); time.sleep(20)"), number)
    assert code == 128 + number
    assert HIDDEN in shown
    assert shown.rindex(SHOWN) > shown.rindex(HIDDEN)
    assert shown.endswith("gemma-run: interrupted\r\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_whole_screen_scrolls_again(number):
    code, shown = on_terminal(STATS.format(end="end(); time.sleep(20)"), number)
    assert code == 128 + number
    assert re.findall(r"\x1b\[[\d;]*r", shown) == ["\x1b[1;23r", "\x1b[r"]
    assert shown.endswith("gemma-run: interrupted\r\n")


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 1), (1, 80), (24, 80)])
@pytest.mark.parametrize("body", [PROGRESS, STATS])
def test_a_terminal_of_any_size(body, size):
    code, shown = on_terminal(body.format(end="pass"), 0, size)
    assert code == 0
    assert "Traceback" not in shown
    for top, bottom in re.findall(r"\x1b\[(\d+);(\d+)r", shown):
        assert 1 <= int(top) < int(bottom) < size[0]
    assert shown.rfind(SHOWN) >= shown.rfind(HIDDEN)


def test_a_terminal_that_becomes_tiny():
    body = """
import fcntl, struct, termios
from runtime_py.cli import live
live.TERMINAL_S = 0
with live.status_line() as update:
    for rows, columns in ((24, 80), (1, 1), (10, 40)):
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        update(lambda: "K 3")
"""
    code, shown = on_terminal(body, 0)
    assert code == 0
    regions = re.findall(r"\x1b\[[\d;]*r", shown)
    assert regions == ["\x1b[1;23r", "\x1b[r", "\x1b[1;9r", "\x1b[r"]
