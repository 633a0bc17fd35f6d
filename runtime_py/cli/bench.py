"""gemma-run bench: draft lengths here, or Google's own runtime on a connected Android device."""

import json
from dataclasses import dataclass
from pathlib import Path

import click

from runtime_py.adb import bench as adb_bench
from runtime_py.adb import connection as adb
from runtime_py.backends.load import pick_runtime
from runtime_py.bench import official
from runtime_py.bench.bundle import bench_bundle
from runtime_py.bench.measure import Effort
from runtime_py.bench.report import check_writable, write_report
from runtime_py.bench.rows import advice, bench_rows
from runtime_py.bundle.bundle import Bundle
from runtime_py.cli import render, render_bench
from runtime_py.cli.options import (
    DRAFT_LENGTH,
    BundleOptions,
    DraftLength,
    bundle_options,
    json_option,
)
from runtime_py.device.device import this_device
from runtime_py.terminal.console import say
from runtime_py.terminal.option_groups import as_one


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and where the report goes."""

    max_new_tokens: int
    repeats: int
    lengths: tuple[DraftLength, ...]
    html: Path | None


@dataclass(frozen=True)
class AdbOptions:
    """Measure on a connected device instead."""

    adb: bool
    serial: str | None
    adb_program: Path | None


bench_options = as_one(
    BenchOptions,
    click.option(
        "--max-new-tokens",
        type=click.IntRange(2),
        default=64,
        show_default=True,
        metavar="N",
        help="Tokens of each run.",
    ),
    click.option(
        "--repeats",
        type=click.IntRange(1),
        default=5,
        show_default=True,
        metavar="N",
        help="Measured runs of each prompt, after one that warms up.",
    ),
    click.option(
        "--draft-length",
        "lengths",
        type=DRAFT_LENGTH,
        multiple=True,
        metavar="auto|K",
        help="Measure this one besides plain decoding; may be given more than once.  [default: "
        "those the bundle has graphs for, and auto]",
    ),
    click.option(
        "--html",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write a report with plots to this file; it needs nothing else.",
    ),
)
adb_options = as_one(
    AdbOptions,
    click.option(
        "--adb",
        is_flag=True,
        help="Measure Google's own runtime on a connected Android device instead. (Tested against "
        "a stand-in for adb, not on a phone.)",
    ),
    click.option(
        "--serial", metavar="ID", help="With --adb: which device, if several are connected."
    ),
    click.option(
        "--adb-program",
        type=click.Path(path_type=Path),
        help=f"With --adb: LiteRT-LM's {adb_bench.PROGRAM} for Android.  "
        "[default: the one sent before]",
    ),
)


@click.command()
@bench_options
@adb_options
@bundle_options
@json_option
def bench(options: BundleOptions, device: AdbOptions, wanted: BenchOptions, as_json: bool) -> None:
    """Measure tokens per second by draft length, and milliseconds by stage.

    Each speed is compared with plain decoding's in the same turn; the interval says how sure that
    ratio is. The last line says what to use, and which candidates show no measurable difference.

    If litert-lm-api is installed, Google's own runtime is measured on the same file. All candidates
    take turns, so a busy machine slows them alike. Each run of auto starts from what the cache has.
    """
    if device.adb:
        _refuse(
            "is of no use with --adb",
            ("--draft-length", wanted.lengths),
            ("--html", wanted.html),
            ("--provider", options.providers),
            ("--runtime", options.runtime != "litert" and options.runtime),
        )
    else:
        _refuse("needs --adb", ("--serial", device.serial), ("--adb-program", device.adb_program))
    if wanted.html:
        check_writable(wanted.html)
    opened = options.open()
    if device.adb:
        _bench_on_device(opened, options, device, wanted, as_json)
    else:
        _bench_here(opened, options, wanted, as_json)


def _refuse(why: str, *options: tuple[str, object]) -> None:
    """Refuse options that were given to the other bench, the one on a device or the one here."""
    for name, value in options:
        if value:
            raise click.UsageError(f"{name} {why}")


def _bench_here(
    opened: Bundle, options: BundleOptions, wanted: BenchOptions, as_json: bool
) -> None:
    name = pick_runtime(opened, options.runtime)
    effort = Effort(max_new_tokens=wanted.max_new_tokens, num_repeats=wanted.repeats)
    total = effort.num_repeats * effort.num_prompts
    with render.progress(f"bench {name}", total, "rounds") as progress:
        found = bench_bundle(opened, name, options.session, wanted.lengths, effort, progress)
    rows = bench_rows(found)
    if wanted.html:
        write_report(wanted.html, opened, name, (options.session, effort), found)
    left_out = official.refusal(this_device()) if official.is_installed() else None
    if left_out and name == "litert":
        say(f"without the official runtime: {left_out}", err=True)
    if as_json:
        folder = str(options.bundle)
        values = {"bundle": folder, "runtime": name, "rows": rows, "advice": advice(rows)}
        say(json.dumps(values))
    else:
        render_bench.print_bench(rows, opened, name)
        if wanted.html:
            say(f"Report: {wanted.html}")


def _bench_on_device(
    opened: Bundle,
    options: BundleOptions,
    device: AdbOptions,
    wanted: BenchOptions,
    as_json: bool,
) -> None:
    effort = adb_bench.DeviceEffort(
        max_new_tokens=wanted.max_new_tokens,
        num_repeats=wanted.repeats,
        num_threads=options.threads,
    )
    connected = adb.connect(device.serial)
    program = device.adb_program
    with render.progress(f"bench {connected.serial}", 2 * effort.num_repeats, "runs") as progress:
        found = adb_bench.bench_on_device(connected, opened, program, effort, progress)
    if as_json:
        say(json.dumps({"bundle": str(opened.folder), **found.as_dict()}))
    else:
        render_bench.print_device_bench(found, opened)
