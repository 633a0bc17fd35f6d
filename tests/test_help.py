"""The help texts are part of the product: a change of theirs is seen in review."""

import pytest
from click.testing import CliRunner

import exporter.cli.command
import runtime_py.cli.commands

COMMANDS = ("check", "generate", "chat", "bench", "inspect", "doctor")


@pytest.mark.parametrize("arguments", ["", *COMMANDS])
def test_help_of_gemma_run(snapshot, arguments):
    assert help_text("gemma-run", runtime_py.cli.commands.main, arguments.split()) == snapshot


def test_help_of_gemma_export(snapshot):
    assert help_text("gemma-export", exporter.cli.command.main, []) == snapshot


def help_text(program, command, arguments):
    result = CliRunner().invoke(
        command, [*arguments, "--help"], prog_name=program, terminal_width=90
    )
    assert result.exit_code == 0
    return result.output
