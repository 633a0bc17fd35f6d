"""gemma-run: the command line on the device."""

import atexit
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click

from runtime_py import render
from runtime_py.bench import TimedBackend, compare_draft_lengths
from runtime_py.bundle import BACKENDS, Bundle
from runtime_py.check import check_bundle
from runtime_py.errors import RunError
from runtime_py.sampling import SamplingLaw
from runtime_py.speculative import Session, Step, Stops
from runtime_py.tokenizer import Message, TextStream, Tokenizer


class ErrorLine(click.Group):
    """Turns a RunError into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        # LiteRT reports its own end from a static destructor, after the last line of ours.
        atexit.register(_close_stderr)
        try:
            return super().invoke(ctx)
        except RunError as error:
            click.echo(f"{ctx.info_name}: error: {error}", err=True)
            sys.exit(1)
        except BrokenPipeError:  # the reader of our output has gone, `| head` for example
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


def _close_stderr() -> None:
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def _options(*decorators: Decorator) -> Decorator:
    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


_bundle_argument: Decorator = click.argument("bundle", type=click.Path(path_type=Path))
_json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
)
_runtime_options = _options(
    click.option(
        "--runtime",
        type=click.Choice(sorted(BACKENDS)),
        help="Which of the bundle's runtimes to use.  [default: the first]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 256),
        help="CPU threads.  [default: the cores, at most 4]",
    ),
)
_draft_length_option: Decorator = click.option(
    "--draft-length",
    type=click.IntRange(0, 63),
    help="Tokens the drafter proposes per round; 0 decodes plainly. Changes the speed, never the "
    "text.  [default: the bundle's]",
)
_sampling_options = _options(
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


@click.group(cls=ErrorLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gemma-export", prog_name="gemma-run")
def main() -> None:
    """Run exported Gemma 4 bundles with their MTP drafter. No torch needed.

    A bundle is the folder that gemma-export makes. The drafter proposes tokens, the target checks
    several of them in one call, and the text is the same as without it: greedy or sampled.

    \b
    gemma-run check BUNDLE       does it still say what the original says?
    gemma-run generate BUNDLE --prompt "Write a haiku"
    gemma-run chat BUNDLE
    gemma-run bench BUNDLE       how fast, by draft length
    """


@main.command()
@_bundle_argument
@_runtime_options
@_json_option
def check(bundle: Path, runtime: str | None, threads: int | None, as_json: bool) -> None:
    """Replay the recorded original and compare, token by token.

    Exit code 0 if the bundle says what the original says, within its recipe's tolerances, and
    speculative decoding equals plain decoding; 1 if not.
    """
    opened = Bundle.open(bundle)
    opened.verify_checksums()
    name = opened.pick_runtime(runtime)
    with render.progress(f"check {name}", opened.reference().num_prompts, "prompts") as progress:
        report = check_bundle(opened, name, threads, progress)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(report), "passed": report.passed}))
    else:
        render.print_check(report, opened)
    if not report.passed:
        sys.exit(1)


@main.command()
@_bundle_argument
@click.option("--prompt", required=True, help="What to say to the model; - reads stdin.")
@click.option("--raw", is_flag=True, help="Continue the text itself, without the chat template.")
@_draft_length_option
@_sampling_options
@_runtime_options
@_json_option
def generate(
    bundle: Path, prompt: str, raw: bool, draft_length: int | None, **options: Any
) -> None:
    """Answer one prompt, streaming the text to stdout and a summary to stderr."""
    as_json = options.pop("as_json")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise RunError("the prompt is empty; say something with --prompt")
    with _loaded(Bundle.open(bundle), draft_length, **options) as loaded:
        tokenizer = loaded.tokenizer
        prompt_ids = tokenizer.encode(text) if raw else tokenizer.encode_chat([_user(text)])
        answer = _Answer(loaded, prompt_ids)
        for piece in answer.stream():
            if not as_json:
                click.echo(piece, nl=False)
        if as_json:
            click.echo(json.dumps(answer.as_dict()))
        else:
            click.echo()
            render.print_summary(answer)


@main.command()
@_bundle_argument
@_draft_length_option
@_sampling_options
@_runtime_options
def chat(bundle: Path, draft_length: int | None, **options: Any) -> None:
    """Talk to the model. /reset forgets the conversation, /quit or Ctrl-D leaves."""
    with _loaded(Bundle.open(bundle), draft_length, **options) as loaded:
        loaded.tokenizer.render_chat([_user("")])  # refuse now if there is no template
        messages: list[Message] = []
        while (line := _read_line()) is not None:
            if line == "/reset":
                messages.clear()
                continue
            messages.append(_user(line))
            answer = _Answer(loaded, loaded.tokenizer.encode_chat(messages))
            try:
                for piece in answer.stream():
                    click.echo(piece, nl=False)
            except KeyboardInterrupt:
                pass  # ends this answer; what was said stays in the conversation
            except RunError as error:
                messages.pop()
                click.echo(f"{error}; or begin again with /reset", err=True)
                continue
            click.echo()
            messages.append({"role": "assistant", "content": answer.text})
            render.print_summary(answer)


@main.command()
@_bundle_argument
@click.option(
    "--max-new-tokens", type=click.IntRange(2), default=64, show_default=True, metavar="N"
)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@_runtime_options
@_json_option
def bench(
    bundle: Path,
    max_new_tokens: int,
    repeats: int,
    runtime: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure tokens per second by draft length, and milliseconds by stage.

    Draft lengths take turns, so that a busy machine disturbs all of them alike.
    """
    opened = Bundle.open(bundle)
    name = opened.pick_runtime(runtime)
    prompts = [ids.tolist() for ids in opened.reference().prompt_ids[:4]]
    with closing(TimedBackend(opened.backend(name, threads))) as backend:
        widths = backend.verify_widths if backend.has_drafter else (1,)
        runs = compare_draft_lengths(
            opened.session(backend),
            backend,
            prompts,
            sorted({width - 1 for width in widths}),
            max_new_tokens=max_new_tokens,
            num_repeats=repeats,
        )
    rows = render.bench_rows(runs)
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "runtime": name, "rows": rows}))
    else:
        render.print_bench(rows, opened, name)


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A bundle with its graphs in memory and every choice made."""

    session: Session
    tokenizer: Tokenizer
    law: SamplingLaw
    stops: Stops
    draft_length: int


@contextmanager
def _loaded(
    bundle: Bundle,
    draft_length: int | None,
    *,
    runtime: str | None,
    threads: int | None,
    max_new_tokens: int,
    **law: Any,
) -> Iterator[_Loaded]:
    sampling = SamplingLaw(**law)
    stops = Stops(
        max_new_tokens=max_new_tokens, token_ids=frozenset(bundle.manifest.tokens.stop_token_ids)
    )
    tokenizer = bundle.tokenizer()
    if draft_length is None:
        draft_length = bundle.manifest.draft_length
    with closing(bundle.backend(bundle.pick_runtime(runtime), threads)) as backend:
        yield _Loaded(bundle.session(backend), tokenizer, sampling, stops, draft_length)


class _Answer:
    """One generation: its text as it comes, and its figures."""

    def __init__(self, loaded: _Loaded, prompt_ids: list[int]) -> None:
        self._loaded = loaded
        self.prompt_ids = prompt_ids
        self.steps: list[Step] = []
        self.text = ""
        self.prefill_s = 0.0  # until the first token is there
        self.decode_s = 0.0  # from then on

    def stream(self) -> Iterator[str]:
        loaded = self._loaded
        pieces = TextStream(loaded.tokenizer)
        start = time.perf_counter()
        for step in loaded.session.generate(
            self.prompt_ids, loaded.law, loaded.stops, loaded.draft_length
        ):
            now = time.perf_counter()
            if self.steps:
                self.decode_s = now - start - self.prefill_s
            else:
                self.prefill_s = now - start
            self.steps.append(step)
            yield self._add(pieces.push(step.token_ids))
        yield self._add(pieces.finish())

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece

    @property
    def token_ids(self) -> list[int]:
        return [token_id for step in self.steps for token_id in step.token_ids]

    @property
    def tokens_per_s(self) -> float | None:
        num_decoded = len(self.token_ids) - 1
        return num_decoded / self.decode_s if num_decoded > 0 and self.decode_s else None

    @property
    def accepted_per_round(self) -> float | None:
        rounds = [step.num_accepted for step in self.steps if step.num_drafted]
        return sum(rounds) / len(rounds) if rounds else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "num_prompt_tokens": len(self.prompt_ids),
            "num_target_calls": len(self.steps),
            "draft_length": self._loaded.draft_length,
            "accepted_per_round": self.accepted_per_round,
            "tokens_per_s": self.tokens_per_s,
            "prefill_s": self.prefill_s,
        }


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _read_line() -> str | None:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        if line == "/quit":
            return None
        if line:
            return line
