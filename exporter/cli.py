"""gemma-export: the command line on the workstation."""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, get_args

import click

from exporter.config import (
    DEVICES,
    LITERT_JS,
    ExportConfig,
    GraphShapes,
    HubModel,
    KvType,
    Location,
    ModelSource,
    known_recipes,
    known_sizes,
    load_size,
    parse_location,
    recipe_text,
)
from exporter.errors import ExportError
from runtime_py.adb import connection as adb
from runtime_py.backends.installed import install_extra, our_version
from runtime_py.bundle.manifest import Manifest, RuntimeName
from runtime_py.cli import render, render_check
from runtime_py.device.own_process import own_module
from runtime_py.errors import RunError
from runtime_py.terminal.choice import Choice
from runtime_py.terminal.command import ErrorLine
from runtime_py.terminal.console import say
from runtime_py.terminal.printable import one_line
from runtime_py.terminal.signals import run_to_its_end

RUNTIMES: tuple[RuntimeName, ...] = ("litert", "executorch", "onnx")


class LocationType(click.ParamType[Location]):
    """A folder, or organisation/name[@revision] on the hub."""

    name = "location"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Location:
        try:
            return value if isinstance(value, Path | HubModel) else parse_location(str(value))
        except ExportError as error:
            self.fail(str(error), param, ctx)


class Command(ErrorLine):
    program = "gemma-export"
    input_errors = (ExportError, RunError)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ImportError as error:  # as on a device, where gemma-run needs none of it
            if (error.name or "").partition(".")[0] in ("exporter", "runtime_py"):
                raise
            raise ExportError(
                f"{error}: exporting needs packages that running does not, torch among them; "
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
@click.option(
    "--size",
    type=Choice(known_sizes()),
    help="A published model, by name; all but tiny are downloaded.",
)
@click.option(
    "--model",
    type=LocationType(),
    metavar="WHERE",
    help="Your own Gemma 4 checkpoint: a folder, or a hub id ORG/NAME[@REVISION].",
)
@click.option(
    "--drafter",
    type=LocationType(),
    metavar="WHERE",
    help="Its MTP drafter (assistant): a folder or a hub id.  [default: the one of --size]",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Folder of a PEFT LoRA adapter to merge into the model.",
)
@click.option("--no-drafter", is_flag=True, help="Export without a drafter.")
@click.option(
    "--runtime",
    "runtimes",
    type=Choice(RUNTIMES),
    multiple=True,
    help="Runtime to lower to; may be given more than once.  [default: the target's; onnx for "
    "26b-a4b]",
)
@click.option(
    "--quantize",
    "recipe",
    metavar="RECIPE",
    help="How weights are stored: float32, float16, int8, int4, int4-groups, mobile, or your own "
    "recipe.toml.  [default: the target's]",
)
@click.option(
    "--kv",
    type=Choice(get_args(KvType)),
    default="float32",
    show_default=True,
    help="How KV rows are stored; int8 takes a quarter of float32's memory. Not for executorch or "
    "web.",
)
@click.option(
    "--print-recipe",
    type=Choice(known_recipes()),
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _option, name: _print_recipe(ctx, name),
    help="Print a recipe, to copy and edit, and exit.",
)
@click.option(
    "--requantize",
    is_flag=True,
    help="Quantize the integers of a QAT checkpoint again, by the recipe. By default they are "
    "kept.",
)
@click.option(
    "--context",
    "context_length",
    type=click.IntRange(16, 2**20),
    metavar="N",
    help="Tokens of prompt and answer together.  [default: the target's, or the model's if less]",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help='Prompts to record the original on: a file with {"kind": "text" or "chat", "text": …} on '
    "each line.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Bundle folder.  [default: ./MODEL-TARGET]"
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the bundle at --output. A folder with any other file in it is left alone.",
)
@click.option("--no-check", is_flag=True, help="Skip the check at the end.")
@click.option(
    "--push",
    is_flag=True,
    help="Send the bundle to a connected Android device with adb, where the demo app and "
    "`gemma-run bench --adb` find it. (Tested against a stand-in for adb, not on a phone.)",
)
@click.option("--serial", metavar="ID", help="With --push: which device, if several are connected.")
@click.version_option(our_version(), prog_name="gemma-export")
def main(**options: Any) -> None:
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
    no_check, push, serial = (options.pop(name) for name in ("no_check", "push", "serial"))
    config = resolve(**options)
    if serial is not None and not push:
        raise click.UsageError("--serial chooses the device for --push")
    device = adb.connect(serial) if push else None  # before the work, not after it
    # Heavy imports wait until the options are known to be good.
    from exporter.pipeline import export

    manifest = export(config, render.progress)
    _print_files(config.output, manifest)
    if not no_check and not _check(config.output, manifest):
        sys.exit(1)
    if device is not None:
        _push(device, config.output)
    if DEVICES[config.device].page:
        say(one_line(f"In a browser: {_serve(config.output)}"))
    elif no_check:  # a check ends with it
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


def resolve(
    *,
    device: str,
    size: str | None,
    model: Location | None,
    drafter: Location | None,
    no_drafter: bool,
    adapter: Path | None,
    **choices: Any,
) -> ExportConfig:
    """Turn options into one configuration, with the target's defaults where nothing was said.

    Raises:
        click.UsageError: for options that contradict each other.
    """
    if isinstance(model, Path) and os.path.isfile(model):
        from exporter.checkpoint.kinds import require_folder  # imports torch

        require_folder(model)  # what it is goes before what else an export needs
    source = _source(size, model, drafter, no_drafter)
    if adapter is not None:
        name = f"{source.name}+{adapter.resolve().name}"
        source = replace(source, name=name, adapter=adapter)
    if choices["prompts"] is not None:
        source = replace(source, prompts=choices["prompts"])
    defaults = DEVICES[device]
    longest = source.max_context_length or defaults.context_length
    context_length = choices["context_length"] or min(defaults.context_length, longest)
    runtimes = choices["runtimes"] or source.runtimes or defaults.runtimes
    if defaults.page and "litert" not in runtimes:
        raise click.UsageError(f"the page of --target {device} runs LiteRT; add --runtime litert")
    return ExportConfig(
        source=source,
        output=choices["output"] or Path(f"{source.name}-{device}"),
        overwrite=choices["overwrite"],
        device=device,
        runtimes=runtimes,
        recipe=choices["recipe"] or defaults.recipe,
        shapes=GraphShapes(
            prefill_lengths=source.prefill_lengths, verify_widths=defaults.verify_widths
        ).within(context_length),
        draft_length=defaults.draft_length,
        requantize=choices["requantize"],
        kv=choices["kv"],
        context_asked=choices["context_length"] is not None,
    )


def _source(
    size: str | None, model: Location | None, drafter: Location | None, no_drafter: bool
) -> ModelSource:
    if drafter is not None and no_drafter:
        raise click.UsageError("--drafter and --no-drafter contradict each other")
    if size is not None:
        source = load_size(size)
    elif model is None:
        raise click.UsageError("say what to export: --size or --model")
    elif drafter is None and not no_drafter:
        raise click.UsageError("--model needs its --drafter, --no-drafter, or its --size")
    else:
        source = ModelSource(name=_name(model), model=model, drafter=None)
    if model is not None:
        source = replace(source, name=_name(model), model=model)
    if drafter is not None or no_drafter:
        source = replace(source, drafter=drafter)
    return source


def _name(model: Location) -> str:
    return model.repo.split("/")[1] if isinstance(model, HubModel) else model.resolve().name


class _OneLine(logging.Formatter):
    """Stages name files, folders and what checkpoints say."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def _show_stages() -> None:
    """One line per stage on stderr; nothing from the libraries underneath but errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    stages = logging.getLogger("exporter")
    stages.setLevel(logging.INFO)
    stages.handlers = [handler]
    stages.propagate = False
    logging.getLogger().setLevel(logging.ERROR)
    # torch sets the level of its own loggers when it is imported, so a filter must say no.
    for name in ("torch.utils._pytree", "torch.onnx._internal.exporter._registration"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    # litert-converter's native messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


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
