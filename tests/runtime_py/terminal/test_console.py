"""What stands on stdout and stderr, whatever a bundle says and whatever the two are."""

import json
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from runtime_py.cli.commands import main
from runtime_py.terminal.printable import REPLACEMENT, printable, shown
from tests.runtime_py.commands import HOSTILE, environment, gemma_run, hostile_bundle, on_terminal

ACTING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SAYING = (
    "--max-new-tokens",
    60,
    "--temperature",
    1,
    "--draft-length",
    2,
)  # some control characters are among it
COMMANDS = {
    "check": ("check", "--verbose"),
    "generate": ("generate", "--raw", "--prompt", "x", *SAYING),
    "chat": ("chat", *SAYING),
    "bench": ("bench", "--repeats", 1, "--max-new-tokens", 4, "--draft-length", 3),
    "inspect": ("inspect", "--all"),
    "doctor": ("doctor",),
    "errors": ("generate", "--prompt", "x", "--runtime", "executorch"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return hostile_bundle(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_that_a_bundle_says_acts_on_a_terminal(name, bundle):
    command, *options = COMMANDS[name]
    text = on_terminal(command, bundle, *options, typed="hello\n/quit\n")
    assert REPLACEMENT in text
    assert not ACTING.search(text), ascii(text)
    if name not in ("generate", "chat"):
        assert "b][red]:smile:" in re.sub(r"\s", "", text)  # neither markup nor emoji
        assert not re.search("^passed: all", text, re.MULTILINE)


def test_a_terminal_of_one_column_is_shown_whole_tables(bundle):
    text = on_terminal("check", bundle, "--verbose", size=(1, 1), TERM="xterm-256color")
    assert "gemma-run: error" not in text
    assert "first difference" in text


def test_a_file_gets_the_text_of_the_model_as_it_is(bundle):
    options = ("--raw", "--prompt", "x", *SAYING)
    text = gemma_run("generate", bundle, *options).stdout.decode()
    answer = json.loads(gemma_run("generate", bundle, *options, "--json").stdout)
    assert text == answer["text"] + "\n"
    assert ACTING.search(text)


@pytest.mark.parametrize(
    ("key", "value"), [(HOSTILE, 1), ("format_version", HOSTILE), ("reference", f"../{HOSTILE}")]
)
def test_an_error_is_one_line_whatever_it_names(key, value, tmp_path):
    folder = hostile_bundle(tmp_path)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    for arguments in ((folder,), (folder, HOSTILE), (f"{HOSTILE}{'x' * 5000}",)):
        done = CliRunner().invoke(main, ["check", *map(str, arguments)])
        assert done.exit_code == 1 + (len(arguments) > 1)
        assert done.stderr.count("\n") == (4 if len(arguments) > 1 else 1), done.stderr
        assert not ACTING.search(done.stderr)


def test_no_command_at_all_is_answered_by_the_help():
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 2
    assert "\nCommands:\n  bench " in done.stderr


def test_letters_of_all_scripts_stay():
    text = "naïve\u00a0日本\u3000\u200fשלום می\u200cخواهم 👩\u200d💻\n\tx"  # noqa: RUF001
    assert printable(text) == text
    assert shown(f"{text}\x85\ud800", 200) == text.replace("\n\t", "  ") + " " + REPLACEMENT


def test_what_is_shown_of_a_value_is_short():
    assert shown("x" * 81) == "x" * 77 + "..."
    assert shown("x" * 80) == "x" * 80


@pytest.mark.parametrize("command", ["chat", "generate", "bench"])
def test_too_many_drafts_are_refused_before_anything_is_said(command, bundle):
    options = ("--prompt", "x") if command == "generate" else ()
    done = gemma_run(command, bundle, *options, "--draft-length", 63, text=True, input="hello\n")
    line = "gemma-run: error: draft length is 63; this bundle allows 0 .. 7\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


GENERATE = ("generate", "--raw", "--prompt", "x", "--max-new-tokens", 8, "--draft-length", 2)
STREAMS = {"generate": GENERATE, "check": ("check", "--threads", 1), "inspect": ("inspect",)}


@pytest.mark.parametrize(("name", "encoding"), [("generate", "ascii"), ("check", "latin-1")])
def test_what_the_output_cannot_encode_is_replaced(name, encoding, bundle):
    command, *options = STREAMS[name]
    done = gemma_run(command, bundle, *options, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout
    assert (done.stdout + done.stderr.replace(b"\xb7", b"")).isascii()


@pytest.mark.parametrize("name", ["help", "generate", "inspect"])
def test_a_full_disk_is_one_line(name, bundle):
    command, *options = STREAMS.get(name, ("--help",))
    there = (bundle,) if options or name == "inspect" else ()
    env = {"PYTHONUNBUFFERED": "1" if name == "generate" else ""}
    done = gemma_run(command, *there, *options, redirected=">/dev/full", env=env, text=True)
    assert done.returncode == 1
    assert done.stderr == "gemma-run: error: stdout: No space left on device\n"


@pytest.mark.parametrize("redirected", ["2>/dev/full", ">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_what_is_closed_or_full_changes_nothing_else(redirected, bundle):
    command, *options = ("chat", "--draft-length", 2) if redirected == "<&-" else GENERATE
    done = gemma_run(command, bundle, *options, redirected=redirected, input=b"")
    assert (done.returncode, b"Error" in done.stderr) == (0, False), done.stderr


def test_a_closed_stream_is_no_place_for_other_files(tmp_path):
    """A file that took the number of stdout would get what native libraries print."""
    program = (
        "from runtime_py.terminal.console import prepare_streams; prepare_streams();"
        "import os, sys;"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); os.write(1, b'x'); os.write(2, b'x');"
        "print(file.fileno() > 2 and sys.stdin.read() == '', file=file)"
    )
    command = f"exec {sys.executable} -c '{program.replace(chr(39), chr(34))}' <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, env=environment(), check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "True\n"


def test_a_reader_that_has_gone_is_no_error(bundle):
    done = gemma_run("inspect", bundle, "--all", redirected="| head -c 3", text=True)
    assert (done.stdout, done.stderr) == (REPLACEMENT, "")
