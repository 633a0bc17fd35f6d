"""A connected Android device: bundles are sent to it, and programs run on it, through adb."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from runtime_py.bundle.manifest import MANIFEST_NAME, bundle_path, file_entry, read_manifest
from runtime_py.errors import RunError

# The folder that adb may write and apps may read; where the demo app looks for bundles.
FOLDER = PurePosixPath("/data/local/tmp/gemma-export")
_SPARE_BYTES = 64 << 20  # left free on the device
_POLL_S = 0.5
_STATES = {
    "unauthorized": "has not allowed USB debugging; unlock it, confirm the question, try again",
    "offline": "is offline; unplug it and plug it in again",
    "no permissions": "may not be opened by this user; see Android's udev rules",
}
Progress = Callable[[int], None]  # called with the megabytes sent


@dataclass(frozen=True)
class Device:
    """One device that answers.

    Args:
        serial: as `adb devices` lists it.
    """

    serial: str

    def shell(self, *command: str | PurePosixPath) -> str:
        """What a command on the device prints, stdout and stderr as one.

        Raises:
            RunError: with the last line of it, if the command fails.
        """
        return self._run(_quoted(*command))

    def replace(self, folder: PurePosixPath, new: PurePosixPath) -> None:
        """Let a folder take another's place, by one command: the device ends what it has begun."""
        self._run(f"{_quoted('rm', '-rf', folder)} && {_quoted('mv', new, folder)}")

    def _run(self, line: str) -> str:
        # The device's shell may keep stderr to itself; 2>&1 is for that shell.
        return _adb("-s", self.serial, "shell", f"({line}) 2>&1")

    def model(self) -> str:
        """What its maker calls it."""
        return self.shell("getprop", "ro.product.model").strip() or self.serial

    def free_bytes(self) -> int:
        """Room for files in FOLDER's file system."""
        lines = self.shell("df", "-k", FOLDER.parent).splitlines()
        numbers = re.findall(r"\s(\d+)", lines[-1]) if lines else []
        if len(numbers) < 3:
            raise RunError(
                f"device {self.serial}: df says {lines[-1:]}; cannot tell its free space"
            )
        return int(numbers[2]) << 10

    def push(self, local: Path, remote: PurePosixPath, progress: Progress) -> None:
        """Send one file; progress hears of the megabytes that have arrived.

        Raises:
            RunError: with adb's last line, if it fails.
        """
        command = [_program(), "-s", self.serial, "push", str(local), str(remote)]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            try:
                while _runs_on(process):
                    progress(self._size(remote) >> 20)
            except BaseException:
                process.kill()
                raise
            output = process.communicate()[0]
        if process.returncode:
            raise RunError(f"device {self.serial}: {local} was not sent: {_last_line(output)}")

    def _size(self, remote: PurePosixPath) -> int:
        try:
            return int(self.shell("stat", "-c", "%s", remote))
        except (RunError, ValueError):
            return 0  # not there yet

    def checksums(self, folder: PurePosixPath, names: Iterable[str]) -> dict[str, str]:
        """The sha256 of those files in a folder of the device that are there, by name."""
        quoted = " ".join(shlex.quote(name) for name in names)
        # sha256sum fails if one is missing, and has said the others by then.
        line = f"cd {shlex.quote(str(folder))} && sha256sum {quoted}; true"
        lines = _adb("-s", self.serial, "shell", f"({line}) 2>/dev/null")
        found = re.findall(r"^([0-9a-f]{64})  (.+)$", lines, re.MULTILINE)
        return {name: checksum for checksum, name in found}


def _quoted(*command: str | PurePosixPath) -> str:
    return " ".join(shlex.quote(str(part)) for part in command)


def connect(serial: str | None) -> Device:
    """The connected device, or the one of several that is meant.

    Raises:
        RunError: if there is none, or several and none was chosen, or it does not let us in.
    """
    states = _list()
    if serial is None and len(states) > 1:
        raise RunError(
            f"{len(states)} devices are connected ({', '.join(states)}); choose --serial"
        )
    if serial is None and not states:
        raise RunError(
            "no Android device is connected; plug one in and switch on USB debugging in its "
            "developer options, then see `adb devices`"
        )
    chosen = next(iter(states)) if serial is None else serial
    if chosen not in states:
        raise RunError(f"no device {chosen}; connected: {', '.join(states) or 'none'}")
    if states[chosen] != "device":
        state = states[chosen]
        raise RunError(f"device {chosen} {_STATES.get(state, f'is in state {state!r}')}")
    return Device(chosen)


def push_bundle(device: Device, bundle: Path, progress: Progress = lambda _: None) -> PurePosixPath:
    """Send a bundle's files, compare their checksums on the device, and put them in their place.

    A bundle that is there already, checksum by checksum, is not sent again.

    Returns:
        The bundle's folder on the device.

    Raises:
        RunError: if the bundle is none, or does not fit, or did not arrive as it was sent.
    """
    checksums = {name: entry.sha256 for name, entry in read_manifest(bundle).files.items()} | {
        MANIFEST_NAME: file_entry(bundle / MANIFEST_NAME).sha256
    }
    folder = FOLDER / re.sub(r"[^A-Za-z0-9._+-]", "_", bundle.resolve().name)
    if device.checksums(folder, checksums) == checksums:
        return folder
    part = folder.with_name(f"{folder.name}.part")
    device.shell("rm", "-rf", part)  # of a push that died: it takes room
    _check_room(device, bundle, checksums)
    try:
        _send(device, bundle, checksums, part, progress)
    except BaseException:
        with suppress(RunError):  # the device has gone: the next push removes it
            device.shell("rm", "-rf", part)
        raise
    device.replace(folder, part)
    return folder


def _send(
    device: Device, bundle: Path, checksums: dict[str, str], part: PurePosixPath, progress: Progress
) -> None:
    device.shell("mkdir", "-p", *{(part / name).parent for name in checksums})
    num_sent = 0
    for name in checksums:
        local = bundle_path(bundle, name)
        device.push(local, part / name, partial(_add, progress, num_sent))
        num_sent += local.stat().st_size >> 20
    arrived = device.checksums(part, checksums)
    altered = [name for name, checksum in checksums.items() if arrived.get(name) != checksum]
    if altered:
        raise RunError(
            f"device {device.serial}: {altered[0]} arrived altered; check the cable, push again"
        )
    # Or no app could list the folder, or read the bundle.
    device.shell("chmod", "a+rx", FOLDER)
    device.shell("chmod", "-R", "a+rX", part)


def size_megabytes(bundle: Path) -> int:
    """What push_bundle's progress counts up to."""
    return sum(entry.size_bytes for entry in read_manifest(bundle).files.values()) >> 20


def _add(progress: Progress, num_sent: int, num_of_this_file: int) -> None:
    progress(num_sent + num_of_this_file)


def _check_room(device: Device, bundle: Path, names: dict[str, str]) -> None:
    device.shell("mkdir", "-p", FOLDER)
    needed = sum(bundle_path(bundle, name).stat().st_size for name in names) + _SPARE_BYTES
    free = device.free_bytes()
    if free < needed:
        raise RunError(
            f"device {device.serial}: {bundle} needs {needed / 1e6:.0f} MB in {FOLDER}, "
            f"{free / 1e6:.0f} MB are free; remove something there"
        )


def _runs_on(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _list() -> dict[str, str]:
    """serial -> state of every device that adb knows."""
    _, _, lines = _adb("devices").partition("List of devices attached")
    # "no permissions (…)" is the one state with spaces in it.
    found = re.findall(r"^(\S+)\s+(no permissions|\S+)", lines, re.MULTILINE)
    return dict(found)


def _adb(*arguments: str) -> str:
    done = subprocess.run(
        [_program(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise RunError(f"adb {' '.join(arguments)}: {_last_line(done.stdout)}")
    return done.stdout


def _program() -> str:
    program = shutil.which("adb")
    if program is None:
        raise RunError("adb is not on the PATH; install Android's platform tools (package adb)")
    return program


def _last_line(output: str) -> str:
    return (output.strip().splitlines() or ["it failed and said nothing"])[-1]
