"""This device: its processor, the processor's features, and its memory. Complete on Linux only."""

import functools
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
# ARM's part numbers of the cores in Raspberry Pis, phones and servers.
_ARM = 0x41
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}
# Processor flags that matter to the runtimes, by the kernel's names, and what each does.
FEATURES = {
    "aarch64": {
        "asimddp": "dot product: int8 and int4 run several times as fast",
        "asimdhp": "half-precision arithmetic",
        "atomics": "LSE atomics: litert-lm-api needs them",
        "i8mm": "int8 matrix product: faster still",
    },
    "x86_64": {
        "avx2": "256-bit vectors",
        "avx512f": "512-bit vectors",
        "avx_vnni": "int8 dot product on 256 bits",
        "avx512_vnni": "int8 dot product on 512 bits",
        "amx_int8": "int8 matrix product",
    },
}
LSE = "atomics"


@dataclass(frozen=True, kw_only=True)
class Device:
    """This machine, as far as the system describes it."""

    model: str  # "Raspberry Pi 5 Model B Rev 1.0"; "": unknown
    architecture: str  # "aarch64"
    processor: str  # "Cortex-A76"
    num_cores: int  # usable by this process
    flags: frozenset[str] | None  # that every core has; None: unknown
    memory_bytes: int | None  # None: unknown
    available_bytes: int | None  # the part that new programs can have; None: unknown

    @property
    def name(self) -> str:
        """Processor and model, for use in a sentence."""
        return f"{self.processor}, {self.model}" if self.model else self.processor

    @property
    def features(self) -> dict[str, bool]:
        """Flag of FEATURES -> whether every core has it; empty where the flags are unknown."""
        known = FEATURES.get(self.architecture, {})
        return {} if self.flags is None else {flag: flag in self.flags for flag in known}

    @property
    def lacks_lse(self) -> bool:
        """Whether this is an ARM processor without LSE atomics, as in a Raspberry Pi 4."""
        return self.architecture == "aarch64" and self.features.get(LSE) is False


@functools.cache
def this_device() -> Device:
    return read_device(_PROC, platform.machine())


def read_device(proc: Path, architecture: str) -> Device:
    """Read a /proc folder.

    Args:
        proc: where the files are.
        architecture: what platform.machine() says.
    """
    processors, general = _cpuinfo(_read(proc / "cpuinfo"))
    memory = _meminfo(_read(proc / "meminfo"))
    model = _read(proc / "device-tree" / "model").rstrip("\0\n") or general.get("Model", "")
    return Device(
        model=_printable(model),
        architecture=architecture,
        processor=_printable(_names(processors) or platform.processor() or architecture),
        num_cores=_num_cores(),
        flags=_common_flags(processors),
        memory_bytes=memory.get("MemTotal"),
        available_bytes=memory.get("MemAvailable"),
    )


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpuinfo(text: str) -> tuple[list[dict[str, str]], dict[str, str]]:
    """One block of keys and values per processor, and the block that describes the board."""
    blocks = [_keys_and_values(block.splitlines()) for block in text.split("\n\n")]
    processors = [block for block in blocks if "processor" in block]
    general = {key: value for block in blocks for key, value in block.items()}
    return processors, general


def _keys_and_values(lines: Iterable[str]) -> dict[str, str]:
    parts = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in parts if colon}


def _common_flags(processors: Iterable[dict[str, str]]) -> frozenset[str] | None:
    """The flags of every core: a thread may run on any of them."""
    said = [block.get("Features", block.get("flags")) for block in processors]
    flags = [frozenset(line.split()) for line in said if line is not None]
    return frozenset.intersection(*flags) if flags else None


def _names(processors: Iterable[dict[str, str]]) -> str:
    """Each kind of core once, in the order of the core numbers."""
    return " and ".join(dict.fromkeys(name for block in processors if (name := _name(block))))


def _name(block: dict[str, str]) -> str:
    try:
        maker, part = int(block["CPU implementer"], 16), int(block["CPU part"], 16)
    except (KeyError, ValueError):
        return block.get("model name", "")
    unknown = f"processor {maker:#x}/{part:#x}"
    return _ARM_PARTS.get(part, unknown) if maker == _ARM else unknown


def _meminfo(text: str) -> dict[str, int]:
    """Bytes by name."""
    found = {}
    for key, value in _keys_and_values(text.splitlines()).items():
        number, _, unit = value.partition(" ")
        if number.isdecimal() and unit == "kB":
            found[key] = int(number) * 1024
    return found


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())
