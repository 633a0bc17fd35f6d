"""The options of gemma-export, each group of them one typed value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click

from exporter.config import HubModel, KvType, Location, known_sizes, parse_location
from exporter.errors import ExportError
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.terminal.choice import Choice
from runtime_py.terminal.option_groups import as_one

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


@dataclass(frozen=True)
class ModelOptions:
    """What is exported."""

    size: str | None
    model: Location | None
    drafter: Location | None
    adapter: Path | None
    no_drafter: bool
    prompts: Path | None


@dataclass(frozen=True)
class FormatOptions:
    """How it is stored, where the target's default does not fit."""

    runtimes: tuple[RuntimeName, ...]
    recipe: str | None
    kv: KvType
    requantize: bool
    context_length: int | None


@dataclass(frozen=True)
class OutputOptions:
    """Where the bundle goes, and what happens to it then."""

    output: Path | None
    overwrite: bool
    no_check: bool
    push: bool
    serial: str | None


model_options = as_one(
    ModelOptions,
    click.option(
        "--size",
        type=Choice(known_sizes()),
        help="A published model, by name; all but tiny are downloaded.",
    ),
    click.option(
        "--model",
        type=LocationType(),
        metavar="WHERE",
        help="Your own Gemma 4 checkpoint: a folder, or a hub id ORG/NAME[@REVISION].",
    ),
    click.option(
        "--drafter",
        type=LocationType(),
        metavar="WHERE",
        help="Its MTP drafter (assistant): a folder or a hub id.  [default: the one of --size]",
    ),
    click.option(
        "--adapter",
        type=click.Path(path_type=Path),
        help="Folder of a PEFT LoRA adapter to merge into the model.",
    ),
    click.option("--no-drafter", is_flag=True, help="Export without a drafter."),
    click.option(
        "--prompts",
        type=click.Path(path_type=Path),
        help='Prompts to record the original on: a file with {"kind": "text" or "chat", "text": …} '
        "on each line.",
    ),
)
format_options = as_one(
    FormatOptions,
    click.option(
        "--runtime",
        "runtimes",
        type=Choice(RUNTIMES),
        multiple=True,
        help="Runtime to lower to; may be given more than once.  [default: the target's; onnx for "
        "26b-a4b]",
    ),
    click.option(
        "--quantize",
        "recipe",
        metavar="RECIPE",
        help="How weights are stored: float32, float16, int8, int4, int4-groups, mobile, or your "
        "own recipe.toml.  [default: the target's]",
    ),
    click.option(
        "--kv",
        type=Choice(get_args(KvType)),
        default="float32",
        show_default=True,
        help="How KV rows are stored; int8 takes a quarter of float32's memory. Not for executorch "
        "or web.",
    ),
    click.option(
        "--requantize",
        is_flag=True,
        help="Quantize the integers of a QAT checkpoint again, by the recipe. By default they are "
        "kept.",
    ),
    click.option(
        "--context",
        "context_length",
        type=click.IntRange(16, 2**20),
        metavar="N",
        help="Tokens of prompt and answer together.  [default: the target's, or the model's if "
        "less]",
    ),
)
output_options = as_one(
    OutputOptions,
    click.option(
        "--output",
        type=click.Path(path_type=Path),
        help="Bundle folder.  [default: ./MODEL-TARGET]",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace the bundle at --output. A folder with any other file in it is left alone.",
    ),
    click.option("--no-check", is_flag=True, help="Skip the check at the end."),
    click.option(
        "--push",
        is_flag=True,
        help="Send the bundle to a connected Android device with adb, where the demo app and "
        "`gemma-run bench --adb` find it. (Tested against a stand-in for adb, not on a phone.)",
    ),
    click.option(
        "--serial", metavar="ID", help="With --push: which device, if several are connected."
    ),
)
