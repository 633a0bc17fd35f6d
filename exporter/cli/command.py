"""gemma-export: the command line on the workstation."""

import logging
import sys
from pathlib import Path
from shlex import quote
from typing import Any

import click

from exporter.cli.options import (
    FormatOptions,
    ModelOptions,
    OutputOptions,
    format_options,
    model_options,
    output_options,
)
from exporter.cli.resolve import resolve
from exporter.config import DEVICES, LITERT_JS, known_recipes, recipe_text
from exporter.errors import ExportError
from runtime_py.adb import connection as adb
from runtime_py.backends.installed import install_extra, our_version
from runtime_py.bundle.manifest import Manifest
from runtime_py.cli import render, render_check
from runtime_py.device.own_process import own_module
from runtime_py.errors import RunError
from runtime_py.terminal.choice import Choice
from runtime_py.terminal.command import ErrorLine
from runtime_py.terminal.console import say
from runtime_py.terminal.printable import one_line
from runtime_py.terminal.signals import run_to_its_end


class Command(ErrorLine):
    program = "gemma-export"
    input_errors = (ExportError, RunError)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ImportError as error:  # as on a device, where only gemma-run is wanted
            if (error.name or "").partition(".")[0] in ("exporter", "runtime_py"):
                raise
            raise ExportError(
                f"{error}: exporting needs torch and more, which running a bundle does not; "
                f"{install_extra('export')}"
            ) from error


def _defaults() -> str:
    """What --target chooses, as the last part of the help."""
    lines = [f"{'Target':<14}{'runtime':<9}{'recipe':<8}{'context':<9}drafts per round"]
    lines += [
        f"{name:<14}{', '.join(device.runtimes):<9}{device.recipe:<8}"
        f"{device.context_length:<9}{device.draft_length}"
        for name, device in sorted(DEVICES.items())
    ]
    return "\b\n" + "\n".join(lines)


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_defaults()
)
@click.option(
    "--target",
    "device",
    type=Choice(sorted(DEVICES)),
    required=True,
    help="What to export for; picks the defaults in the table below. web adds a page that runs the "
    "bundle in a browser.",
)
@model_options
@format_options
@click.option(
    "--print-recipe",
    type=Choice(known_recipes()),
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _option, name: _print_recipe(ctx, name),
    help="Print a recipe, to copy and edit, and exit.",
)
@output_options
@click.version_option(our_version(), prog_name="gemma-export")
def main(place: OutputOptions, form: FormatOptions, model: ModelOptions, device: str) -> None:
    """Export Gemma 4 and its MTP drafter as a bundle for a device, and check it.

    \b
    gemma-export --target raspberry-pi --size tiny
    gemma-export --target android --size e2b
    gemma-export --target android --size e2b --model ./my-finetune
    gemma-export --target desktop --model ./mine --drafter ./my-drafter --quantize int4
    gemma-export --target android --size e2b --adapter ./my-lora --prompts my-prompts.jsonl
    gemma-export --print-recipe int4 > mine.toml

    A bundle is a folder with the model file, the tokenizer and a recording of what the original
    model said. gemma-run runs it without torch, and the platform's own runtime loads the same model
    file. At the end, `gemma-run check` replays the recording.

    --target picks the runtime, recipe, context and draft length in the table at the end. Options
    override the first three; the draft length can be changed whenever the bundle runs.
    """
    _show_stages()
    if place.serial is not None and not place.push:
        raise click.UsageError("--serial chooses the device for --push")
    config = resolve(device, model, form, place)
    connected = adb.connect(place.serial) if place.push else None  # before the work, not after it
    # Heavy imports wait until the options are known to be good.
    from exporter.pipeline import export

    manifest = export(config, render.progress)
    _print_files(config.output, manifest)
    if not place.no_check and not _check(config.output, manifest):
        sys.exit(1)
    if connected is not None:
        _push(connected, config.output)
    if DEVICES[device].page:
        say(one_line(f"In a browser: {_serve(config.output)}"))
    elif place.no_check:  # a check ends with it
        say(one_line(f"Next: {render_check.next_command(config.output, manifest)}"))


def _serve(output: Path) -> str:
    folder = quote(str(output))
    install = f"npm install --no-save --prefix {folder} {LITERT_JS}"
    return f"{install}; python3 -m http.server --directory {folder}"


def _push(device: adb.Device, output: Path) -> None:
    total = adb.size_megabytes(output)
    with render.progress(f"push {device.serial}", total, "MB") as progress:
        folder = adb.push_bundle(device, output, progress)
    say(f"On {device.model()}: {folder}")


def _print_recipe(context: click.Context, name: str | None) -> None:
    if name is not None:
        say(recipe_text(name).rstrip("\n"))
        context.exit()


class _OneLine(logging.Formatter):
    """Stages name files, folders and what checkpoints say."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def _show_stages() -> None:
    """One line per stage on stderr; each vendor.py quiets its own library."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    stages = logging.getLogger("exporter")
    stages.setLevel(logging.INFO)
    stages.handlers = [handler]
    stages.propagate = False


def _print_files(output: Path, manifest: Manifest) -> None:
    say(f"\n{output}")
    for name, entry in manifest.files.items():
        say(f"  {name:<24}{entry.size_bytes / 1e6:>10.2f} MB")
    say()


def _check(output: Path, manifest: Manifest) -> bool:
    """Run gemma-run check, as the device would: in a process that never loads torch."""
    passed = True
    for runtime in manifest.runtimes:
        command = [*own_module("runtime_py"), "check", str(output), "--runtime", runtime]
        passed = run_to_its_end(command) == 0 and passed
    return passed
