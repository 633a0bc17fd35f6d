"""Options that several commands of gemma-run share; each group arrives as one typed value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

from runtime_py import Model, SamplingParams, load
from runtime_py.backends import MAX_THREADS, SessionOptions
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import MAX_DRAFT_LENGTH, RuntimeName
from runtime_py.cli import render
from runtime_py.model.model import DEFAULT_MAX_NEW_TOKENS
from runtime_py.terminal.choice import Choice
from runtime_py.terminal.option_groups import as_one

RUNTIMES = sorted(get_args(RuntimeName))
DraftLength = int | Literal["auto"]


class AutoOrNumber(click.IntRange):
    """A draft length, or the word auto."""

    name = "draft length: auto or a number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


DRAFT_LENGTH = AutoOrNumber(0, MAX_DRAFT_LENGTH)


@dataclass(frozen=True)
class BundleOptions:
    """Which bundle, and how its graphs are to be run."""

    bundle: Path
    runtime: RuntimeName | None
    threads: int | None
    providers: tuple[str, ...]

    @property
    def session(self) -> SessionOptions:
        return SessionOptions(self.threads, self.providers)

    def open(self) -> Bundle:
        """Raises RunError if it is none."""
        return Bundle.open(self.bundle, render.progress)

    def load(self, opened: Bundle, draft_length: DraftLength) -> Model:
        """Raises RunError if it cannot be run."""
        return load(
            opened,
            runtime=self.runtime,
            threads=self.threads,
            providers=self.providers,
            draft_length=draft_length,
        )


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is generated and shown."""

    draft_length: DraftLength
    stats: bool
    max_new_tokens: int


bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
)
bundle_options = as_one(
    BundleOptions,
    bundle_argument,
    click.option(
        "--runtime",
        type=Choice(RUNTIMES),
        help="Which of the bundle's runtimes to use.  [default: the first installed]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, MAX_THREADS),
        help="CPU threads.  [default: the cores, at most 4]",
    ),
    click.option(
        "--provider",
        "providers",
        multiple=True,
        metavar="NAME",
        help="Execution provider of onnxruntime; may be given more than once, the best first. "
        "The stock wheel has the CPU's; others, such as XnnpackExecutionProvider, need their own "
        "build.  [default: CPUExecutionProvider]",
    ),
)
answer_options = as_one(
    AnswerOptions,
    click.option(
        "--draft-length",
        type=DRAFT_LENGTH,
        default="auto",
        show_default=True,
        metavar="auto|K",
        help="Tokens the drafter proposes per round: 0 is plain decoding, auto picks what is "
        "fastest here. Changes the speed, never the text.",
    ),
    click.option(
        "--stats",
        is_flag=True,
        help="Show draft length, accepted drafts and tokens per second while generating.",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1),
        default=DEFAULT_MAX_NEW_TOKENS,
        show_default=True,
        metavar="N",
        help="The longest answer, in tokens.",
    ),
)
sampling_options = as_one(
    SamplingParams,
    click.option(
        "--temperature",
        type=float,
        default=SamplingParams.temperature,
        show_default=True,
        help="0 is greedy; higher is more varied.",
    ),
    click.option(
        "--top-k",
        type=int,
        default=SamplingParams.top_k,
        show_default=True,
        help="Keep the K likeliest; 0 keeps all.",
    ),
    click.option(
        "--top-p",
        type=float,
        default=SamplingParams.top_p,
        show_default=True,
        help="Keep the likeliest tokens up to this mass; 1 keeps all.",
    ),
    click.option(
        "--seed",
        type=int,
        default=SamplingParams.seed,
        show_default=True,
        help="Same seed, same text.",
    ),
)
