"""Google's own LiteRT-LM runtime on a connected Android device, with and without the drafter.

Its benchmark program is not ours to ship. It is built from LiteRT-LM's sources,
`bazel build --config=android_arm64 //runtime/engine:litert_lm_advanced_main`, or taken from what
Google builds of them, with the libraries that lie beside it.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

from runtime_py.adb.connection import FOLDER, Device, push_bundle
from runtime_py.bundle.bundle import Bundle
from runtime_py.errors import RunError

PROGRAM = "litert_lm_advanced_main"
_BIN = FOLDER / "bin"
# BenchmarkInfo as runtime/engine/io_types.cc prints it, and the drafter's own line.
_TURN = re.compile(r"Decode Turn \d+: Processed (\d+) tokens")
_SPEED = re.compile(r"Decode Speed: ([\d.]+) tokens/sec")
_SUCCESS_RATE = re.compile(r"MTP Drafter - Success rate: ([\d.]+)")


@dataclass(frozen=True)
class DeviceRun:
    """One generation, by the program's own clock."""

    mtp: bool
    num_tokens: int
    tokens_per_s: float
    success_rate: float | None  # share of drafts accepted, where the program logs it


@dataclass(frozen=True, kw_only=True)
class DeviceBench:
    """What the official runtime did on a device."""

    device: str
    runs: tuple[DeviceRun, ...]

    def tokens_per_s(self, *, mtp: bool) -> float | None:
        """The median; None if there are no such runs."""
        speeds = [run.tokens_per_s for run in self.runs if run.mtp == mtp]
        return median(speeds) if speeds else None

    def as_dict(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "device": self.device,
            "runs": [asdict(run) for run in self.runs],
            "tokens_per_s": self.tokens_per_s(mtp=False),
            "tokens_per_s_mtp": self.tokens_per_s(mtp=True),
        }


@dataclass(frozen=True, kw_only=True)
class DeviceEffort:
    """How much to measure."""

    max_new_tokens: int
    num_repeats: int
    num_threads: int | None = None  # None: the program's own choice


def bench_on_device(
    device: Device,
    bundle: Bundle,
    program: Path | None,
    effort: DeviceEffort,
    progress: Callable[[int], None] = lambda _: None,
) -> DeviceBench:
    """Send the bundle and the program, unless they are there, and let them take turns.

    Args:
        program: the program on this machine; None if it was sent before.
        progress: called with the number of runs done, of two for each repeat.

    Raises:
        RunError: if the bundle is not for this runtime, or the program is missing or fails.
    """
    model = bundle.model_path(bundle.made_for("litert"))
    if model.suffix != ".litertlm":
        raise RunError(f"{model}: the official runtime takes .litertlm files; export again")
    _send_program(device, program)
    folder = push_bundle(device, bundle.folder)
    prompt = bundle.tokenizer().text_after_bos(bundle.reference().prompt_ids[0].tolist())
    _send_text(device, prompt, _BIN / "prompt.txt")
    kinds = (False, True) if bundle.manifest.model.has_drafter else (False,)
    runs = []
    for _ in range(effort.num_repeats):
        for mtp in kinds:
            runs.append(_run(device, folder / model.name, effort, mtp=mtp))
            progress(len(runs))
    return DeviceBench(device=device.model(), runs=tuple(runs))


def _send_program(device: Device, program: Path | None) -> None:
    if program is None:
        if not device.checksums(_BIN, [PROGRAM]):
            raise RunError(
                f"device {device.serial}: no {PROGRAM} in {_BIN}; build LiteRT-LM's "
                f"//runtime/engine:{PROGRAM} for android_arm64 and name it with --adb-program"
            )
        return
    if not program.is_file():
        raise RunError(f"{program}: no such program; --adb-program names {PROGRAM} for Android")
    device.shell("mkdir", "-p", _BIN)
    for file in (program, *sorted(program.parent.glob("*.so"))):
        device.push(file, _BIN / (PROGRAM if file == program else file.name), lambda _: None)
    device.shell("chmod", "755", _BIN / PROGRAM)


def _send_text(device: Device, text: str, remote: PurePosixPath) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / remote.name
        local.write_text(text, encoding="utf-8")
        device.push(local, remote, lambda _: None)


def _run(device: Device, model: PurePosixPath, effort: DeviceEffort, *, mtp: bool) -> DeviceRun:
    options = {
        "backend": "cpu",
        "model_path": model,
        "input_prompt_file": _BIN / "prompt.txt",
        "max_output_tokens": effort.max_new_tokens,
        "enable_speculative_decoding": str(mtp).lower(),
        "benchmark": "true",
        "async": "false",
        "cache_dir": _BIN,  # or it writes beside the model
    }
    if effort.num_threads is not None:
        options["num_cpu_threads"] = effort.num_threads
    arguments = [f"--{name}={value}" for name, value in options.items()]
    output = device.shell("env", f"LD_LIBRARY_PATH={_BIN}", _BIN / PROGRAM, *arguments)
    turns, speeds = _TURN.findall(output), _SPEED.findall(output)
    if not turns or not speeds:
        last = (output.strip().splitlines() or ["nothing"])[-1]
        raise RunError(f"device {device.serial}: {PROGRAM} printed no decode speed, but: {last}")
    rates = _SUCCESS_RATE.findall(output)
    return DeviceRun(mtp, int(turns[-1]), float(speeds[-1]), float(rates[-1]) if rates else None)
