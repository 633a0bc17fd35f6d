"""Every benchmark in turn: `python -m tests.benchmarks.run_all`, on a quiet machine."""

import shutil
import subprocess
import sys

import click

from tests.benchmarks.inputs import ROOT, Work, python_command

BENCHMARKS = (
    "runtimes",
    "loop_overhead",
    "experts",
    "kv_in_place",
    "never_slower",
    "fresh_generate",
    "replay",
    "against_official",
    "export_memory",
    "export_cost",
)


@click.command()
@click.option("--repeats", type=click.IntRange(1), help="Of each.  [default: its own]")
def main(repeats: int | None) -> None:
    """Run each in a process of its own; results go to tests/benchmarks/results."""
    options = () if repeats is None else ("--repeats", repeats)
    failed = [
        name
        for name in BENCHMARKS
        if subprocess.run(
            python_command(f"tests.benchmarks.{name}", options), cwd=ROOT, check=False
        ).returncode
    ]
    if failed:
        click.echo(f"failed: {', '.join(failed)}", err=True)
        sys.exit(1)
    shutil.rmtree(Work().folder)  # gigabytes, and of no use to other sources


if __name__ == "__main__":
    main()
