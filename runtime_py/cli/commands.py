"""gemma-run: the command line on the device."""

import atexit
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from runtime_py import Message, RunError, SamplingParams, Stream
from runtime_py.backends.installed import our_version
from runtime_py.backends.load import pick_runtime, try_backend
from runtime_py.bundle.bundle import Bundle
from runtime_py.check.replay import check_bundle
from runtime_py.cli import render, render_check, render_doctor, render_inspection
from runtime_py.cli.bench import bench
from runtime_py.cli.live import show
from runtime_py.cli.options import (
    RUNTIMES,
    AnswerOptions,
    BundleOptions,
    answer_options,
    bundle_argument,
    bundle_options,
    json_option,
    sampling_options,
)
from runtime_py.doctor.doctor import diagnose
from runtime_py.inspection import inspect_bundle
from runtime_py.model.prompt import encode_prompt
from runtime_py.terminal.choice import Choice
from runtime_py.terminal.command import ErrorLine
from runtime_py.terminal.console import say
from runtime_py.terminal.signals import Interrupted


class Command(ErrorLine, click.Group):
    program = "gemma-run"

    def invoke(self, ctx: click.Context) -> Any:
        # LiteRT logs from a static destructor, after our last line.
        atexit.register(_close_stderr)
        return super().invoke(ctx)


def _close_stderr() -> None:
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(our_version(), prog_name="gemma-run")
def main() -> None:
    """Run exported Gemma 4 bundles with their MTP drafter. No torch needed.

    A bundle is the folder that gemma-export makes. The drafter proposes tokens, the target checks
    several of them in one call, and the text is the same as without it: greedy or sampled.

    \b
    gemma-run check BUNDLE       does it still say what the original says?
    gemma-run generate BUNDLE --prompt "Write a haiku"
    gemma-run chat BUNDLE
    gemma-run bench BUNDLE       how fast, by draft length; what to use here
    gemma-run inspect BUNDLE     what is in it: sizes, memory, types
    gemma-run doctor [BUNDLE]    what this device has, what loads, what fits
    """


@main.command()
@bundle_options
@click.option("--verbose", is_flag=True, help="Show the table of everything that was compared.")
@json_option
def check(options: BundleOptions, verbose: bool, as_json: bool) -> None:
    """Replay the recorded original and compare, token by token.

    Exit code 0 if the bundle says what the original says, within its recipe's tolerances, and
    speculative decoding equals plain decoding; 1 if not.

    The graphs are first loaded and called once in a separate process, so that a file that crashes
    or hangs the runtime is named in an error. This is no protection from a malicious file.
    """
    opened = options.open()
    name = pick_runtime(opened, options.runtime)  # before large files are read
    opened.verify_checksums()
    try_backend(opened, name, options.session)
    with render.progress(f"check {name}", opened.reference().num_prompts, "prompts") as progress:
        report = check_bundle(opened, name, options.session, progress)
    if as_json:
        derived = {"tokens_per_round": report.tokens_per_round, "passed": report.passed}
        say(json.dumps({**dataclasses.asdict(report), **derived}))
    else:
        render_check.print_check(report, opened, name, verbose)
    if not report.passed:
        sys.exit(1)


@main.command()
@click.option("--prompt", required=True, help="What to say to the model; - reads stdin.")
@click.option("--raw", is_flag=True, help="Continue the text itself, without the chat template.")
@answer_options
@sampling_options
@bundle_options
@json_option
def generate(
    options: BundleOptions,
    sampling: SamplingParams,
    wanted: AnswerOptions,
    prompt: str,
    raw: bool,
    as_json: bool,
) -> None:
    """Answer one prompt, streaming the text to stdout and a summary to stderr."""
    opened = options.open()
    tokenizer = opened.tokenizer()
    text = sys.stdin.read(tokenizer.max_bytes + 1) if prompt == "-" else prompt
    if not text:
        raise RunError("the prompt is empty; say something with --prompt")
    prompt_ids = encode_prompt(tokenizer, text, raw=raw)
    with options.load(opened, wanted.draft_length) as model:
        answer = model.stream(prompt_ids, sampling, max_new_tokens=wanted.max_new_tokens)
        show(answer, shown=not as_json, stats=wanted.stats)
        result = answer.result
        if as_json:
            values = dataclasses.asdict(result)
            say(json.dumps({**values, **values.pop("stats")}))
        else:
            render.print_summary(result)


@main.command()
@answer_options
@sampling_options
@bundle_options
def chat(options: BundleOptions, sampling: SamplingParams, wanted: AnswerOptions) -> None:
    """Talk to the model. /reset forgets the conversation, /quit or Ctrl-D leaves."""
    opened = options.open()
    encode_prompt(opened.tokenizer(), [_user("")], raw=False)  # refuse now without a template
    with options.load(opened, wanted.draft_length) as model:
        messages: list[Message] = []
        while (line := _read_line()) is not None:
            if line == "/reset":
                messages.clear()
                continue
            messages.append(_user(line))
            try:
                answer = model.stream(messages, sampling, max_new_tokens=wanted.max_new_tokens)
                _show_until_ctrl_c(answer, wanted.stats)
            except RunError as error:
                messages.pop()
                say(f"{error}; or begin again with /reset", err=True)
                continue
            messages.append({"role": "assistant", "content": answer.result.text})
            render.print_summary(answer.result)


main.add_command(bench)


@main.command()
@bundle_argument
@click.option(
    "--runtime",
    type=Choice(RUNTIMES),
    help="Only this runtime's files.  [default: all in the bundle]",
)
@click.option(
    "--all",
    "show_all",
    is_flag=True,
    help="Also list every matrix, constant, signature and section.",
)
@json_option
def inspect(bundle: Path, runtime: str | None, show_all: bool, as_json: bool) -> None:
    """Show sizes, memory and types of the model files.

    They are read from the files themselves, without a runtime or the checkpoint.
    """
    opened = Bundle.open(bundle, render.progress)
    names = list(opened.manifest.runtimes) if runtime is None else [opened.made_for(runtime)]
    found = {name: inspect_bundle(opened, name) for name in names}
    if as_json:
        runtimes = {
            name: {"recipe": opened.entry(name).recipe, **findings.as_dict()}
            for name, findings in found.items()
        }
        values = {"bundle": str(bundle), "name": opened.manifest.name, "runtimes": runtimes}
        say(json.dumps(values))
        return
    for name, findings in found.items():
        title = f"{opened.manifest.name} on {name}, recipe {opened.entry(name).recipe}"
        render_inspection.print_findings(findings, title, show_all)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@json_option
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Say what this device has, which runtimes load on it, and what fits into its memory.

    Every runtime is loaded in a process of its own, so that one that was not compiled for this
    processor is reported. Exit code 0 if one loads (with BUNDLE: one of the bundle's, and the
    bundle fits), 1 if not.
    """
    found = diagnose(None if bundle is None else Bundle.open(bundle, render.progress))
    if as_json:
        say(json.dumps(found.as_dict()))
    else:
        render_doctor.print_diagnosis(found)
    if not found.healthy:
        sys.exit(1)


def _show_until_ctrl_c(answer: Stream, stats: bool) -> None:
    """Ctrl-C ends this answer; what was said stays in the conversation."""
    try:
        show(answer, shown=True, stats=stats)
    except Interrupted as stop:
        if not stop.is_ctrl_c:
            raise


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _read_line() -> str | None:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except Interrupted as stop:
            if not stop.is_ctrl_c:
                raise
            return None
        if line == "/quit":
            return None
        if line:
            return line
