"""docs/cli.md: every command and option, from the commands themselves.

python -m tests.cli_page     # writes it again, after an option or its help has changed
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

import exporter.cli.command
import runtime_py.cli.commands
from exporter.config import DEVICES

OUT = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """\
# Commands

<!-- Written by `python -m tests.cli_page` from the commands' own help; do not edit. -->

`gemma-export` runs on the workstation, `gemma-run` on the device.
`--help` of each shows the same text.
"""
TARGETS = """\
### Targets

What `--target` chooses. `26b-a4b` goes to `onnx`, the only runtime that can run it.

| target | runtime | recipe | context | drafts per round |
| --- | --- | --- | --- | --- |
"""


def generate() -> str:
    """The page's text."""
    return "\n".join((HEAD, *_export(), *_run()))


def _export() -> Iterator[str]:
    context = _context(exporter.cli.command.main, "gemma-export")
    yield f"## gemma-export\n\n{_description(context)}\n{_parameters(context)}"
    rows = (
        f"| {name} | {', '.join(device.runtimes)} | {device.recipe} | {device.context_length} | "
        f"{device.draft_length} |\n"
        for name, device in sorted(DEVICES.items())
    )
    yield TARGETS + "".join(rows)


def _run() -> Iterator[str]:
    group = runtime_py.cli.commands.main
    context = _context(group, "gemma-run")
    yield f"## gemma-run\n\n{_description(context)}"
    for name in group.list_commands(context):
        inner = click.Context(group.commands[name], parent=context, info_name=name)
        yield f"### gemma-run {name}\n\n{_description(inner)}\n{_parameters(inner)}"


def _context(command: click.Command, name: str) -> click.Context:
    """With -h, as the command is called: click keeps the help option of the first context."""
    return click.Context(command, info_name=name, **command.context_settings)


def _description(context: click.Context) -> str:
    usage = " ".join((context.command_path, *context.command.collect_usage_pieces(context)))
    paragraphs = inspect.cleandoc(context.command.help or "").split("\n\n")
    return f"```text\n{usage}\n```\n\n" + "".join(map(_paragraph, paragraphs))


def _paragraph(text: str) -> str:
    if not text.startswith("\b\n"):
        return text.replace("\n", " ") + "\n\n"
    lines = text.splitlines()[1:]
    if any(line.startswith("gemma-run ") for line in lines):  # with what each is for
        return "```text\n{}\n```\n\n".format("\n".join(lines))
    return "```console\n{}\n```\n\n".format("\n".join(f"$ {line}" for line in lines))


def _parameters(context: click.Context) -> str:
    rows = []
    for option in context.command.get_params(context):
        if isinstance(option, click.Option) and (record := option.get_help_record(context)):
            name, meaning = (text.replace("|", r"\|") for text in record)
            rows.append(f"| `{name}` | {meaning.replace('  [', ' [')} |\n")
    return "| option | meaning |\n| --- | --- |\n" + "".join(rows)


@click.command()
def main() -> None:
    """Write the page."""
    OUT.write_text(generate(), encoding="utf-8")


if __name__ == "__main__":
    main()
