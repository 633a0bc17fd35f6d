"""What gemma-export says, whatever names are in it."""

import logging
import re

import pytest
from click.testing import CliRunner

from exporter.cli.command import _show_stages, main
from tests.runtime_py.commands import HOSTILE

ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.mark.parametrize(
    "options",
    [
        ("--model", HOSTILE, "--no-drafter"),
        ("--size", HOSTILE),
        ("--size", "tiny", "--quantize", HOSTILE),
        ("--size", "tiny", "--quantize", f"{HOSTILE}.toml"),
        ("--size", "tiny", "--prompts", HOSTILE),
        ("--size", "tiny", "--adapter", HOSTILE),
        ("--size", "tiny", HOSTILE),
    ],
)
def test_an_error_is_one_line_whatever_it_names(options, tmp_path):
    output = str(tmp_path / "x")
    done = CliRunner().invoke(main, ["--target", "desktop", "--output", output, *options])
    assert done.exit_code in (1, 2)
    assert "b][red]:smile:" in done.stderr
    assert not ACTING.search(done.stderr), ascii(done.stderr)
    if done.exit_code == 1:
        *stages, error = done.stderr.splitlines()
        assert ": error: " in error
        assert [line.split()[0] for line in stages] == ["export"]


def test_a_stage_is_shown_fit_for_a_terminal(capsys):
    stages = logging.getLogger("exporter")
    before = (stages.level, stages.handlers, stages.propagate)
    try:
        _show_stages()
        logging.getLogger("exporter.x").info("done %s", HOSTILE)
    finally:
        stages.level, stages.handlers, stages.propagate = before
    said = capsys.readouterr().err
    assert "[red]:smile:" in said
    assert not ACTING.search(said)
    assert said.count("\n") == 1
