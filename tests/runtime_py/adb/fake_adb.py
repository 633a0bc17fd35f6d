"""A stand-in for adb and the devices behind it: a folder plays the device's file system.

Commands for the device are run by this machine's own shell, with the device's folder put in place
of /data/local/tmp. Nothing here shows what a real device does; it shows what we ask of it.
"""

import json
import os
import stat
import sys
from pathlib import Path

PROGRAM = """#!{python} -IS
import json, os, shutil, subprocess, sys
from pathlib import Path

home = Path({home!r})
state = json.loads((home / "state.json").read_text())
with (home / "log").open("a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
arguments = sys.argv[1:]
if arguments == ["devices"]:
    print("* daemon started successfully\\nList of devices attached")
    for serial, what in state["devices"].items():
        print(f"{{serial}}\\t{{what}}")
    print()
    sys.exit(0)
assert arguments.pop(0) == "-s"
serial = arguments.pop(0)
root = home / serial
what, *rest = arguments
if what == "shell":
    line = rest[0].replace("/data/local/tmp", str(root))
    path = f"{{home / 'bin'}}:/usr/bin:/bin"
    sys.exit(subprocess.run(["sh", "-c", line], env={{"PATH": path}}).returncode)
assert what == "push"
target = Path(rest[1].replace("/data/local/tmp", str(root)))
if state["push_fails"]:
    print(f"adb: error: failed to copy '{{rest[0]}}': remote No space left on device")
    sys.exit(1)
shutil.copyfile(rest[0], target)
if state["alters"] == target.name:
    target.write_bytes(target.read_bytes()[:-1] + b"?")
print(f"{{rest[0]}}: 1 file pushed")
"""
DF = "#!/bin/sh\necho 'Filesystem 1K-blocks Used Available Use% Mounted on'\n"
GETPROP = "#!/bin/sh\necho 'Pixel 10 Pro'\n"


class FakeAdb:
    """Installs itself in a folder and sees what it was asked.

    Args:
        home: where it lives, a path without spaces; search_path is to be the PATH.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "path").mkdir(parents=True)
        (home / "bin").mkdir()
        self._program("path/adb", PROGRAM.format(python=sys.executable, home=str(home)))
        self._program("bin/getprop", GETPROP)
        self.connect({"emulator-5554": "device"})

    def connect(
        self,
        devices: dict[str, str],
        *,
        free_kib: int = 10**8,
        push_fails: bool = False,
        alters: str = "",
    ) -> None:
        """Which devices there are, and how they behave."""
        state = {"devices": devices, "push_fails": push_fails, "alters": alters}
        (self.home / "state.json").write_text(json.dumps(state))
        self._program("bin/df", f"{DF}echo '/dev/block/dm-5 110000000 1 {free_kib} 1% /data'\n")
        for serial in devices:
            (self.home / serial).mkdir(exist_ok=True)

    def folder(self, serial: str = "emulator-5554") -> Path:
        """What the device calls /data/local/tmp/gemma-export."""
        return self.home / serial / "gemma-export"

    @property
    def asked(self) -> list[list[str]]:
        """The arguments of every call."""
        log = self.home / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def search_path(self) -> str:
        return f"{self.home / 'path'}{os.pathsep}{os.environ['PATH']}"

    def _program(self, name: str, text: str) -> None:
        path = self.home / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
