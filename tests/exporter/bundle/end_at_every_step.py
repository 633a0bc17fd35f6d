"""End the publication of a bundle at each of its steps, and say what that leaves.

A step is a file or folder that is made, renamed or removed; where Python raises the signal as an
exception, every line of exporter/bundle/staging.py is one too. Run in a process of its own, which
forks once for every end.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from exporter.bundle import staging
from runtime_py.terminal.signals import interruptible

EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock"}
MARK = "reference.npz"  # which of the two bundles it is, is written there
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(folder: Path, bundle: Path) -> None:
    """Print {case: [[number of steps, [what went wrong, ...]], the same of SIGKILL]} as JSON.

    Args:
        folder: to work in.
        bundle: the old one.
    """
    os.fsync = lambda _: None
    for number in CAUGHT:
        signal.signal(number, signal.SIG_DFL)  # a shell may start the tests with some ignored
    found = {}
    for case in ("exchange", "two renames", "new"):
        staging._exchange = EXCHANGE if case == "exchange" else lambda *_: False
        old = None if case == "new" else bundle
        found[case] = (
            end_at_every_step(folder / case, old, killed=False),
            end_at_every_step(folder / case, old, killed=True),
        )
    print(json.dumps(found))  # noqa: T201


EXCHANGE = staging._exchange


def end_at_every_step(folder: Path, old: Path | None, killed: bool) -> tuple[int, list[str]]:
    """(number of steps, what went wrong)"""
    wrong = []
    for step in range(1, 10_000):
        number = signal.SIGKILL if killed else CAUGHT[step % len(CAUGHT)]
        if old:
            shutil.copytree(old, folder / "bundle")
        else:
            folder.mkdir(parents=True)
        status = os.waitstatus_to_exitcode(ended(folder / "bundle", step, number))
        wrong += [f"step {step}: {what}" for what in look(folder, old is not None, killed)]
        if killed:
            staging.remove_left(folder / "bundle")
            wrong += [f"step {step}, then: {what}" for what in look(folder, old is not None, False)]
        shutil.rmtree(folder)
        if status == 0:
            return step, wrong
        if status != (-number if killed else 128 + number):
            wrong.append(f"step {step}: exit code {status} after {number.name}")
    raise AssertionError


def look(folder: Path, had_one: bool, killed: bool) -> list[str]:
    names = os.listdir(folder)
    wrong = [f"left {name}" for name in names if name != "bundle" and not killed]
    if "bundle" in names:
        files = sorted(os.listdir(folder / "bundle"))
        if (folder / "bundle" / MARK).read_text() not in ("old", "new") or len(files) != 5:
            wrong.append(f"neither the old nor the new bundle: {files}")
    elif had_one and not (killed and any(name.endswith(".old") for name in names)):
        wrong.append("no bundle")
    return wrong


class Watch:
    """Sends this process a signal before one of its steps."""

    def __init__(self, step: int, number: int) -> None:
        self.left, self.number = step, number

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def audit(self, event: str, _arguments: tuple) -> None:
        if event in EVENTS:
            self.count()

    def trace(self, frame, event, _argument):
        if frame.f_code.co_filename != staging.__file__:
            return None
        if event == "line":
            self.count()
        return self.trace

    def exchange(self, *folders: Path, unwatched=staging._exchange) -> bool:
        self.count()
        found = unwatched(*folders)
        self.count()
        return found


def ended(place: Path, step: int, number: int) -> int:
    """Publish in a child that gets a signal before a step; its wait status."""
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    code, watch = 1, Watch(step, number)
    try:
        with interruptible("test"):
            if staging._exchange is EXCHANGE:
                staging._exchange = watch.exchange
            sys.addaudithook(watch.audit)
            if number != signal.SIGKILL:
                sys.settrace(watch.trace)
            publish(place)
            sys.settrace(None)
            watch.left = 0
        code = 0
    except SystemExit as error:
        code = error.code
    finally:
        os._exit(code)


def publish(place: Path) -> None:
    with staging.staged(place, overwrite=True) as folder:
        for name in ("manifest.json", "model", "tokenizer", "template", MARK):
            (folder / name).write_text("new")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
