"""gemma-run: the command line on the device."""

import atexit
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from runtime_py.adb import bench as adb_bench
from runtime_py.adb import connection as adb
from runtime_py.backends import SessionOptions
from runtime_py.backends.installed import our_version
from runtime_py.backends.load import BACKENDS, pick_runtime, try_backend
from runtime_py.bench import official
from runtime_py.bench.bundle import bench_bundle
from runtime_py.bench.measure import Effort
from runtime_py.bench.report import check_writable, write_report
from runtime_py.bench.rows import advice, bench_rows
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.chat_template import Message
from runtime_py.check.replay import check_bundle
from runtime_py.cli import render, render_bench, render_check, render_doctor, render_inspection
from runtime_py.cli.live import status_line
from runtime_py.cli.options import (
    AutoOrNumber,
    bundle_argument,
    draft_length_option,
    json_option,
    runtime_options,
    sampling_options,
    stats_option,
)
from runtime_py.device.device import this_device
from runtime_py.doctor.doctor import diagnose
from runtime_py.errors import RunError
from runtime_py.inspection import inspect_bundle
from runtime_py.model import Answer, Loaded, load
from runtime_py.terminal.command import ErrorLine
from runtime_py.terminal.console import say, say_model_text
from runtime_py.terminal.signals import Interrupted


class Command(ErrorLine, click.Group):
    program = "gemma-run"

    def invoke(self, ctx: click.Context) -> Any:
        # LiteRT reports its own end from a static destructor, after the last line of ours.
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
    gemma-run inspect BUNDLE     what is in it: types, sizes, signatures, memory
    gemma-run doctor [BUNDLE]    what this device has, what loads, what fits
    """


@main.command()
@bundle_argument
@runtime_options
@click.option("--verbose", is_flag=True, help="Show the table of everything that was compared.")
@json_option
def check(bundle: Path, runtime: str | None, verbose: bool, as_json: bool, **options: Any) -> None:
    """Replay the recorded original and compare, token by token.

    Exit code 0 if the bundle says what the original says, within its recipe's tolerances, and
    speculative decoding equals plain decoding; 1 if not.

    The graphs are first loaded and called once in a process of their own, so that a file that ends
    or holds up the runtime's native code is named in an error. That costs a second load; it is no
    protection from a file that was made to take over the process.
    """
    opened = Bundle.open(bundle, render.progress)
    name = pick_runtime(opened, runtime)  # before large files are read
    opened.verify_checksums()
    session = _session(options)
    try_backend(opened, name, session)
    with render.progress(f"check {name}", opened.reference().num_prompts, "prompts") as progress:
        report = check_bundle(opened, name, session, progress)
    if as_json:
        derived = {"tokens_per_round": report.tokens_per_round, "passed": report.passed}
        say(json.dumps({**dataclasses.asdict(report), **derived}))
    else:
        render_check.print_check(report, opened, name, verbose)
    if not report.passed:
        sys.exit(1)


@main.command()
@bundle_argument
@click.option("--prompt", required=True, help="What to say to the model; - reads stdin.")
@click.option("--raw", is_flag=True, help="Continue the text itself, without the chat template.")
@draft_length_option
@stats_option
@sampling_options
@runtime_options
@json_option
def generate(
    bundle: Path, prompt: str, raw: bool, draft_length: int | Literal["auto"], **options: Any
) -> None:
    """Answer one prompt, streaming the text to stdout and a summary to stderr."""
    as_json, stats = options.pop("as_json"), options.pop("stats")
    opened = Bundle.open(bundle, render.progress)
    tokenizer = opened.tokenizer()
    text = sys.stdin.read(tokenizer.max_bytes + 1) if prompt == "-" else prompt
    if not text:
        raise RunError("the prompt is empty; say something with --prompt")
    prompt_ids = tokenizer.encode(text) if raw else tokenizer.encode_chat([_user(text)])
    session = _session(options)
    with load(opened, tokenizer, draft_length, options=session, **options) as loaded:
        answer = Answer(loaded, prompt_ids)
        _stream(answer, shown=not as_json, stats=stats)
        if as_json:
            say(json.dumps(answer.as_dict()))
        else:
            render.print_summary(answer)


@main.command()
@bundle_argument
@draft_length_option
@stats_option
@sampling_options
@runtime_options
def chat(bundle: Path, draft_length: int | Literal["auto"], stats: bool, **options: Any) -> None:
    """Talk to the model. /reset forgets the conversation, /quit or Ctrl-D leaves."""
    opened = Bundle.open(bundle, render.progress)
    tokenizer = opened.tokenizer()
    tokenizer.render_chat([_user("")])  # refuse now if there is no template
    session = _session(options)
    with load(opened, tokenizer, draft_length, options=session, **options) as loaded:
        messages: list[Message] = []
        while (line := _read_line()) is not None:
            if line == "/reset":
                messages.clear()
                continue
            messages.append(_user(line))
            try:
                answer = _reply(loaded, messages, stats)
            except RunError as error:
                messages.pop()
                say(f"{error}; or begin again with /reset", err=True)
                continue
            messages.append({"role": "assistant", "content": answer.text})
            render.print_summary(answer)


@main.command()
@bundle_argument
@click.option(
    "--max-new-tokens", type=click.IntRange(2), default=64, show_default=True, metavar="N"
)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--adb",
    is_flag=True,
    help="Measure Google's own runtime on a connected Android device instead. (Tested against a "
    "stand-in for adb, not on a phone.)",
)
@click.option("--serial", metavar="ID", help="With --adb: which device, if several are connected.")
@click.option(
    "--adb-program",
    type=click.Path(path_type=Path),
    help=f"With --adb: LiteRT-LM's {adb_bench.PROGRAM} for Android.  "
    "[default: the one sent before]",
)
@click.option(
    "--draft-length",
    "lengths",
    type=AutoOrNumber(0, 63),
    multiple=True,
    metavar="auto|K",
    help="Measure this one besides plain decoding; may be given more than once.  [default: those "
    "the bundle has graphs for, and auto]",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a report with plots to this file; it needs nothing else.",
)
@runtime_options
@json_option
def bench(
    bundle: Path,
    lengths: tuple[int | Literal["auto"], ...],
    html: Path | None,
    runtime: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure tokens per second by draft length, and milliseconds by stage.

    Where litert-lm-api is installed, Google's own runtime runs on the same file beside it. All take
    turns, so that a busy machine disturbs all of them alike. Every generation of auto begins anew.
    """
    ours = {"--draft-length": lengths, "--html": html, "--provider": options["providers"]}
    ours["--runtime"] = runtime if runtime != "litert" else None
    theirs = {f"--{name.replace('_', '-')}": options[name] for name in ("serial", "adb_program")}
    _refuse_useless(ours if options["adb"] else theirs, adb=options["adb"])
    if html:
        check_writable(html)
    opened = Bundle.open(bundle, render.progress)
    session_options = _session(options)
    effort = Effort(max_new_tokens=options["max_new_tokens"], num_repeats=options["repeats"])
    if options["adb"]:
        device_effort = adb_bench.DeviceEffort(
            max_new_tokens=effort.max_new_tokens,
            num_repeats=effort.num_repeats,
            num_threads=session_options.num_threads,
        )
        _bench_on_device(opened, device_effort, options, as_json)
        return
    name = pick_runtime(opened, runtime)
    total = effort.num_repeats * effort.num_prompts
    with render.progress(f"bench {name}", total, "rounds") as progress:
        found = bench_bundle(opened, name, session_options, lengths, effort, progress)
    rows = bench_rows(found)
    if html:
        write_report(html, opened, name, (session_options, effort), found)
    left_out = official.refusal(this_device()) if official.is_installed() else None
    if left_out and name == "litert":
        say(f"without the official runtime: {left_out}", err=True)
    if as_json:
        values = {"bundle": str(bundle), "runtime": name, "rows": rows, "advice": advice(rows)}
        say(json.dumps(values))
    else:
        render_bench.print_bench(rows, opened, name)
        if html:
            say(f"Report: {html}")


def _refuse_useless(options: Mapping[str, object], *, adb: bool) -> None:
    """Refuse what the other bench understands, the one on a device or the one here."""
    for name, value in options.items():
        if value:
            raise click.UsageError(f"{name} {'is of no use with' if adb else 'needs'} --adb")


def _bench_on_device(
    bundle: Bundle, effort: adb_bench.DeviceEffort, options: dict[str, Any], as_json: bool
) -> None:
    device = adb.connect(options["serial"])
    with render.progress(f"bench {device.serial}", 2 * effort.num_repeats, "runs") as progress:
        found = adb_bench.bench_on_device(device, bundle, options["adb_program"], effort, progress)
    if as_json:
        say(json.dumps({"bundle": str(bundle.folder), **found.as_dict()}))
    else:
        render_bench.print_device_bench(found, bundle)


@main.command()
@bundle_argument
@click.option(
    "--runtime",
    type=click.Choice(sorted(BACKENDS)),
    help="Only this runtime's files.  [default: all in the bundle]",
)
@click.option("--all", "show_all", is_flag=True, help="A line for every tensor, nothing folded.")
@json_option
def inspect(bundle: Path, runtime: str | None, show_all: bool, as_json: bool) -> None:
    """List every weight's type as the made files have it, and sizes, signatures and memory.

    Read from the files themselves: neither the runtime nor the checkpoint is needed.
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


def _session(options: dict[str, Any]) -> SessionOptions:
    """Takes what belongs to it out of a command's options."""
    return SessionOptions(options.pop("threads"), options.pop("providers"))


def _reply(loaded: Loaded, messages: list[Message], stats: bool) -> Answer:
    answer = Answer(loaded, loaded.tokenizer.encode_chat(messages))
    try:
        _stream(answer, shown=True, stats=stats)
    except Interrupted as stop:
        if not stop.is_ctrl_c:
            raise
        # It ends this answer; what was said stays in the conversation.
    return answer


def _stream(answer: Answer, *, shown: bool, stats: bool) -> None:
    """Show the text as it comes; whatever ends it, what follows begins on a line of its own."""
    try:
        with status_line(stats) as update:
            for piece in answer.stream():
                if shown:
                    say_model_text(piece)
                update(answer.status)
    finally:
        if shown:
            say()


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
