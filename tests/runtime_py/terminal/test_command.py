"""How a command ends that meets an error."""

import errno

import click
import pytest
from click.testing import CliRunner

from runtime_py.errors import RunError
from runtime_py.terminal.command import TRACEBACK, ErrorLine


class Command(ErrorLine):
    program = "program"


def failed(error, monkeypatch, traceback=False):
    """What a command that raises an error says on stderr."""

    @click.command(cls=Command)
    def command():
        raise error

    if not traceback:
        monkeypatch.delenv(TRACEBACK)
    result = CliRunner().invoke(command)
    if traceback:
        return result
    assert result.exit_code == 1
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("a: b; do c"), "a: b; do c"),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (OSError(errno.EACCES, "Permission denied", b"/a/\xff"), "/a/\N{REPLACEMENT CHARACTER}: "),
        (MemoryError(), "out of memory; "),
        (KeyError("a\nb"), "KeyError: 'a\\nb' (test_command.py, line 22); this should not happen"),
        (OSError("no number"), "OSError: no number (test_command.py, line 22); this should"),
    ],
)
def test_every_error_is_one_line(error, line, monkeypatch):
    said = failed(error, monkeypatch)
    assert said.startswith(f"program: error: {line}")
    assert said.count("\n") == 1


def test_an_endless_line_keeps_its_end(monkeypatch):
    said = failed(RunError("x" * 10**6 + "; do c"), monkeypatch)
    assert len(said) < 5000
    assert said.endswith("; do c\n")


def test_an_error_nobody_foresaw_is_seen_by_tests_and_where_it_is_asked_for(monkeypatch):
    result = failed(KeyError("a"), monkeypatch, traceback=True)
    assert isinstance(result.exception, KeyError)
    assert TRACEBACK in failed(KeyError("a"), monkeypatch)
