"""gemma-run doctor: what this device has, which runtimes load on it, and what fits into it."""

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime_py.backends import installed
from runtime_py.backends.probe import probe
from runtime_py.bench import official
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.device.device import Device, this_device
from runtime_py.inspection import inspect_bundle
from runtime_py.inspection.sizes import known_sizes

RUNTIMES: tuple[RuntimeName, ...] = ("litert", "executorch", "onnx")
CONTEXT_LENGTH = 2048  # tokens; assumed for the published sizes

Verdict = Literal["fits", "tight", "too large"]  # tight: only in memory that other programs hold


@dataclass(frozen=True, kw_only=True)
class RuntimeState:
    """One runtime on this device."""

    name: str
    package: str  # what pip calls it
    version: str | None  # None: not installed
    problem: str | None  # why it cannot be used, in one line; None: it loads
    command: str | None  # repairs it; None: nothing to repair, or no command does

    @property
    def loads(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether something fits into this device's memory."""

    what: str  # a size and recipe, or a bundle
    runtime: RuntimeName
    need_bytes: int
    verdict: Verdict | None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What the doctor found."""

    device: Device
    system: str
    gemma_run: str  # version
    runtimes: tuple[RuntimeState, ...]
    fits: tuple[Fit, ...]
    use: RuntimeName | None  # the runtime to use, for the bundle if there is one; None: none loads
    bundle: str | None = None

    @property
    def loading(self) -> tuple[RuntimeName, ...]:
        """The runtimes that load here."""
        loads = {state.name for state in self.runtimes if state.loads}
        return tuple(name for name in RUNTIMES if name in loads)

    @property
    def healthy(self) -> bool:
        """A runtime loads; with a bundle: one of the bundle's, and the bundle is not too large."""
        if self.bundle is None:
            return self.use is not None
        chosen = [fit for fit in self.fits if fit.runtime == self.use]
        return bool(chosen) and chosen[0].verdict != "too large"

    def as_dict(self) -> dict[str, Any]:
        """What --json prints."""
        device = dataclasses.asdict(self.device)
        del device["flags"]
        return {
            "device": {**device, "features": self.device.features},
            "system": self.system,
            "gemma_run": self.gemma_run,
            "runtimes": [dataclasses.asdict(state) for state in self.runtimes],
            "bundle": self.bundle,
            "fits": [dataclasses.asdict(fit) for fit in self.fits],
            "use": self.use,
            "healthy": self.healthy,
        }


def diagnose(bundle: Bundle | None) -> Diagnosis:
    """Examine this device; with a bundle, whether the bundle runs here."""
    device = this_device()
    states = tuple(examine(name, device) for name in (*RUNTIMES, installed.OFFICIAL))
    loading = [name for name in RUNTIMES if any(s.name == name and s.loads for s in states)]
    if bundle is None:
        fits = size_fits(device, loading)
        use = next(iter(loading), None)
    else:
        fits = bundle_fits(bundle, device)
        use = next((fit.runtime for fit in fits if fit.runtime in loading), None)
    return Diagnosis(
        device=device,
        system=_system(),
        gemma_run=installed.our_version(),
        runtimes=states,
        fits=fits,
        use=use,
        bundle=None if bundle is None else str(bundle.folder),
    )


def examine(name: str, device: Device) -> RuntimeState:
    """Find out whether one runtime is installed and loads."""
    package = installed.DISTRIBUTIONS[name]
    problem: str | None
    if not installed.is_installed(name):
        problem, command, version = "not installed", installed.install_command(name), None
    else:
        version, command = installed.version(package) or "unknown", None
        problem = official.refusal(device) if name == installed.OFFICIAL else None
        problem = problem or probe(name)
    if name == installed.OFFICIAL and version is None and (refusal := official.refusal(device)):
        problem, command = refusal, None
    return RuntimeState(
        name=name, package=package, version=version, problem=problem, command=command
    )


def bundle_fits(bundle: Bundle, device: Device) -> tuple[Fit, ...]:
    """One for each of a bundle's runtimes, in the bundle's order."""
    fits = []
    for runtime in bundle.manifest.runtimes:
        need = inspect_bundle(bundle, runtime).memory_bytes
        fits.append(_fit(bundle.manifest.name, runtime, need, device))
    return tuple(fits)


def size_fits(device: Device, loading: Sequence[RuntimeName]) -> tuple[Fit, ...]:
    """One for every published size and recipe, on a loading runtime that can run it, if any."""
    fits = []
    for size in known_sizes():
        for recipe in size.recipes:
            able = [name for name in loading if size.runs_on(name, recipe)]
            runtime = size.runtime if size.runtime in able or not able else able[0]
            need = size.need_bytes(recipe, CONTEXT_LENGTH, runtime)
            fits.append(_fit(f"{size.name} {recipe}", runtime, need, device))
    return tuple(fits)


def _fit(what: str, runtime: RuntimeName, need_bytes: int, device: Device) -> Fit:
    return Fit(
        what=what, runtime=runtime, need_bytes=need_bytes, verdict=verdict(need_bytes, device)
    )


def verdict(need_bytes: int, device: Device) -> Verdict | None:
    """Compare a need with the device's memory; None where the device does not say how much."""
    if device.memory_bytes is None:
        return None
    available = device.memory_bytes if device.available_bytes is None else device.available_bytes
    if need_bytes <= available:
        return "fits"
    return "tight" if need_bytes <= device.memory_bytes else "too large"


def _system() -> str:
    libc, version = platform.libc_ver()
    parts = [f"{platform.system()} {platform.release()}", platform.machine()]
    parts += [f"{libc} {version}"] if libc else []
    return ", ".join([*parts, f"Python {platform.python_version()}"])
