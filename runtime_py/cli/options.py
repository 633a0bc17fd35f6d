"""Options that several commands of gemma-run share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from runtime_py.backends.load import BACKENDS


class AutoOrNumber(click.IntRange):
    """A draft length, or the word auto."""

    name = "draft length: auto or a number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def _options(*decorators: Decorator) -> Decorator:
    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


bundle_argument: Decorator = click.argument("bundle", type=click.Path(path_type=Path))
json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
)
runtime_options = _options(
    click.option(
        "--runtime",
        type=click.Choice(sorted(BACKENDS)),
        help="Which of the bundle's runtimes to use.  [default: the first installed]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 256),
        help="CPU threads.  [default: the cores, at most 4]",
    ),
    click.option(
        "--provider",
        "providers",
        multiple=True,
        metavar="NAME",
        help="Execution provider of onnxruntime; may be given more than once, the best first. "
        "Its stock wheel has the CPU's; others, such as XnnpackExecutionProvider, need a build of "
        "their own.  [default: CPUExecutionProvider]",
    ),
)
draft_length_option: Decorator = click.option(
    "--draft-length",
    type=AutoOrNumber(0, 63),
    default="auto",
    show_default=True,
    metavar="auto|K",
    help="Tokens the drafter proposes per round: 0 decodes plainly, auto takes what pays best by "
    "measured cost and acceptance. Changes the speed, never the text.",
)
stats_option: Decorator = click.option(
    "--stats",
    is_flag=True,
    help="Show K, accepted drafts and tokens per second of the last rounds while they come.",
)
sampling_options = _options(
    click.option(
        "--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, metavar="N"
    ),
    click.option(
        "--temperature",
        type=float,
        default=0.0,
        show_default=True,
        help="0 is greedy; higher is more varied.",
    ),
    click.option(
        "--top-k",
        type=int,
        default=64,
        show_default=True,
        help="Keep the K likeliest; 0 keeps all.",
    ),
    click.option(
        "--top-p",
        type=float,
        default=0.95,
        show_default=True,
        help="Keep the likeliest tokens up to this mass; 1 keeps all.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same text."),
)
