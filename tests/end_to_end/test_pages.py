"""What README and docs show of gemma-run works on an exported bundle.

test_run.py runs check, bench in full and the pages' Python; test_official_commands.py runs
LiteRT-LM's commands and lines.
"""

import pytest
from click.testing import CliRunner

from runtime_py.cli.commands import main
from tests.pages import commands

BUNDLE = "gemma4-tiny-raspberry-pi"
# docs/cli.md writes BUNDLE for a bundle's name; --adb needs a phone.
ELSEWHERE = {"check", "BUNDLE", "--adb"}
RUN = sorted(
    command.words[1:]
    for command in {command.text: command for command in commands()}.values()
    if command.words[0] == "gemma-run" and not ELSEWHERE & set(command.words)
)
# Without those that another has all words of.
HERE = [words for words in RUN if not any(set(words) < set(others) for others in RUN)]
# In full they take a minute.
SHORTER = {"bench": ("--repeats", "1", "--max-new-tokens", "2", "--draft-length", "3")}


@pytest.fixture(scope="module")
def home(export_tiny, tmp_path_factory):
    """A folder with a bundle of the name that the pages use."""
    folder = tmp_path_factory.mktemp("home")
    (folder / BUNDLE).symlink_to(export_tiny("int8"))
    return folder


@pytest.mark.parametrize("words", HERE, ids=" ".join)
def test_a_shown_command_runs(home, monkeypatch, words):
    monkeypatch.chdir(home)
    arguments = [*words, *SHORTER.get(words[0], ())]
    done = CliRunner().invoke(main, arguments, input="/quit\n", prog_name="gemma-run")
    assert done.exit_code == 0, done.output
