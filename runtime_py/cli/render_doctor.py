"""What gemma-run doctor shows a person."""

import os
from shlex import quote

from rich.table import Table

from runtime_py.backends.installed import OFFICIAL
from runtime_py.device.device import FEATURES, Device
from runtime_py.doctor.doctor import CONTEXT_LENGTH, Diagnosis, RuntimeState, Verdict
from runtime_py.inspection.memory import memory_text
from runtime_py.terminal.console import Screen, new_table
from runtime_py.terminal.printable import one_line

_WORDS: dict[Verdict | None, str] = {
    "fits": "fits",
    "tight": "only if other programs end",
    "too large": "too large",
    None: "unknown memory",
}


def print_diagnosis(found: Diagnosis) -> None:
    """The device, the runtimes, what fits, and one sentence that says what to do."""
    console = Screen()
    console.print(_device(found))
    console.print(_runtimes(found))
    for state in found.runtimes:
        if state.command:  # a line of its own, to be copied whole
            console.print(f"{_name(state)}: {state.command}", soft_wrap=True)
    console.print(_fits(found))
    for line in advice(found):
        console.print(one_line(line), soft_wrap=True)


def _device(found: Diagnosis) -> Table:
    device = found.device
    table = new_table("this device", show_header=False)
    table.add_column("what")
    table.add_column("found", overflow="fold")
    if device.model:
        table.add_row("model", device.model)
    cores = f"{device.num_cores} core{'s' if device.num_cores > 1 else ''}"
    table.add_row("processor", f"{device.processor}, {cores} for gemma-run")
    for flag, has_it in device.features.items():
        what = FEATURES[device.architecture][flag]
        table.add_row(f"  {flag}", f"{'yes' if has_it else 'no '}  {what}")
    if device.memory_bytes is not None:
        available = device.available_bytes
        free = "" if available is None else f", {_gb(available)} of it available"
        table.add_row("memory", f"{_gb(device.memory_bytes)}{free}")
    table.add_row("system", found.system)
    table.add_row("gemma-run", found.gemma_run)
    return table


def _runtimes(found: Diagnosis) -> Table:
    table = new_table("runtimes")
    for column in ("runtime", "package", "version"):
        table.add_column(column, no_wrap=True)
    table.add_column("state", overflow="fold")
    for state in found.runtimes:
        table.add_row(_name(state), state.package, state.version or "", state.problem or "loads")
    return table


def _name(state: RuntimeState) -> str:
    return "official (bench only)" if state.name == OFFICIAL else state.name


def _fits(found: Diagnosis) -> Table:
    if found.bundle is None:
        title = f"memory for published sizes, {CONTEXT_LENGTH} tokens of context"
    else:
        title = f"memory for {found.bundle}"
    table = new_table(title)
    table.add_column("what")
    table.add_column("runtime")
    table.add_column("needs", justify="right")
    table.add_column("here")
    for fit in found.fits:
        table.add_row(fit.what, fit.runtime, memory_text(fit.need_bytes), _WORDS[fit.verdict])
    return table


def advice(found: Diagnosis) -> list[str]:
    """What to do next."""
    missing = [_no_runtime(found)] if found.use is None else []
    if found.bundle is None:
        return [*missing, _what_to_export(found)]
    if missing:
        return missing
    chosen = next(fit for fit in found.fits if fit.runtime == found.use)
    if chosen.verdict == "too large":
        need = memory_text(chosen.need_bytes)
        return [
            f"Does not fit: {chosen.what} needs {need} on {chosen.runtime}. "
            "Export it with fewer bits (--quantize int4), a shorter --context, or a smaller size"
        ]
    return [f"Next: gemma-run chat {quote(found.bundle)} --runtime {found.use}"]


def _no_runtime(found: Diagnosis) -> str:
    wanted = {fit.runtime for fit in found.fits} if found.bundle else {"litert"}
    none = f"No runtime {'of this bundle ' if found.bundle else ''}loads here"
    for state in found.runtimes:
        if state.name in wanted and state.command:
            return f"{none}. Next: {state.command}"
    return f"{none}, and no command repairs that: the table says why"


def _what_to_export(found: Diagnosis) -> str:
    fits = [fit for fit in found.fits if found.use is None or fit.runtime in found.loading]
    if all(fit.verdict is None for fit in fits):
        return "How much memory this device has is unknown; choose by what the table says is needed"
    fitting = [fit for fit in fits if fit.verdict == "fits"]
    if not fitting:
        return "No published size fits here; gemma-export --size tiny makes one that does"
    # Of the recipe with the most bits that anything fits with, the last, the largest: fewer bits
    # want a checkpoint that was trained for them.
    recipes = list(dict.fromkeys(fit.what.split()[1] for fit in found.fits))
    recipe = min((fit.what.split()[1] for fit in fitting), key=recipes.index)
    best = [fit for fit in fitting if fit.what.endswith(f" {recipe}")][-1]
    size = best.what.split()[0]
    return (
        f"Largest that fits with {recipe}: {size}. On a workstation: gemma-export --target "
        f"{_target(found.device)} --size {size} --quantize {recipe} --runtime {best.runtime} "
        f"--context {CONTEXT_LENGTH}"
    )


def _target(device: Device) -> str:
    """gemma-export's name for what this device is like."""
    if "ANDROID_ROOT" in os.environ:
        return "android"
    return "raspberry-pi" if device.architecture == "aarch64" else "desktop"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
