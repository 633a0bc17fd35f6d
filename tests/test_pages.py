"""README and docs: commands that exist, links that lead somewhere, facts that hold.

tests/end_to_end/test_pages.py runs what runs here.
"""

import ast
import re
import tomllib
from collections.abc import Callable, Sequence

import click
import pytest
from packaging.requirements import Requirement

import exporter.cli.command
import exporter.pipeline
import runtime_py.cli.commands
from exporter.config import DEVICES, LITERT_JS, ExportConfig
from runtime_py.adb import connection
from runtime_py.inspection.sizes import known_sizes
from tests.pages import (
    PAGES,
    README,
    ROOT,
    SHELLS,
    Command,
    anchors,
    blocks,
    commands,
    has_indented_blocks,
    links,
    table,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
# Languages of blocks that hold no commands; python's are run.
OTHERS = {"", "text", "json", "mermaid", "python", "kotlin", "js", "toml"}
# What a user has at hand; it is not ours to test.
TOOLS = {".", "cd", "cp", "gemma-export", "gemma-run", "git", "python", "python3", "scp", "uname"}
MAX_README_BYTES = 8192


class Reached(Exception):
    """The command has made a configuration of its options."""

    def __init__(self, config: ExportConfig) -> None:
        self.config = config


def parse_export(arguments: Sequence[str]) -> ExportConfig | None:
    """What gemma-export would export, up to where the work begins; None: it only prints."""
    stubs = pytest.MonkeyPatch()

    def export(config: ExportConfig, *_: object) -> None:
        raise Reached(config)

    with stubs.context() as patch:
        patch.setattr(exporter.pipeline, "export", export)
        patch.setattr(connection, "connect", lambda _serial: None)
        try:
            exporter.cli.command.main.main(list(arguments), "gemma-export", standalone_mode=False)
        except Reached as reached:
            return reached.config
    return None


def check_export(words: Sequence[str]) -> None:
    if ">" in words:
        words = words[: words.index(">")]
    parse_export(words[1:])


def check_run(words: Sequence[str]) -> None:
    group = runtime_py.cli.commands.main
    parent = click.Context(group, info_name=words[0], **group.context_settings)
    group.commands[words[1]].make_context(words[1], list(words[2:]), parent)


def check_litert_lm(words: Sequence[str]) -> None:
    from litert_lm_cli.main import cli

    cli.commands[words[1]].make_context(words[1], list(words[2:]))


def check_pip(words: Sequence[str]) -> None:
    assert words[1] == "install"
    for word in words[2:]:
        if word.startswith("-"):
            assert word == "--no-deps"
        elif match := re.fullmatch(r"(?:\.|.*/gemma-export|gemma-export)(?:\[([a-z,]+)\])?", word):
            assert set(filter(None, (match[1] or "").split(","))) <= set(EXTRAS)
        else:
            pins = [Requirement(line) for extra in EXTRAS.values() for line in extra]
            assert Requirement(word) in pins, f"{word} is not what pyproject.toml asks for"


def check_make(words: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words[1:]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def check_npm(words: Sequence[str]) -> None:
    assert words[-1] == LITERT_JS


def check_apt(words: Sequence[str]) -> None:
    """The machine of .ci/run has what the pages ask for, but for Debian's own Python."""
    known = {"python3-venv", *(ROOT / ".ci" / "run").read_text(encoding="utf-8").split()}
    packages = [word for word in words[words.index("apt") + 2 :] if not word.startswith("-")]
    assert set(packages) <= known


def check_script(words: Sequence[str]) -> None:
    assert (ROOT / words[0]).is_file()


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "gemma-export": check_export,
    "gemma-run": check_run,
    "litert-lm": check_litert_lm,
    "pip": check_pip,
    "make": check_make,
    "npm": check_npm,
    "sudo": check_apt,
    "./android_demo/test.sh": check_script,
}


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.where)
def test_a_command_is_one_that_exists(command: Command):
    """A wrong option, extra, package or make target fails here."""
    program = command.words[0]
    assert program in CHECKS or program in TOOLS or program.startswith("python3."), command.text
    try:
        CHECKS.get(program, lambda _: None)(command.words)
    except click.UsageError as error:
        pytest.fail(f"{command.where}: {command.text}: {error.format_message()}")


def test_every_block_says_what_it_is():
    """Or its commands would not be found: console and sh hold them, and no indented block."""
    for page in PAGES:
        for block in blocks(page):
            assert block.language in {*OTHERS, *SHELLS}, block.where
        assert not has_indented_blocks(page), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), link
        assert there.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(there), link


def test_every_page_of_docs_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    assert set((ROOT / "docs").glob("*.md")) - {index} <= listed


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= MAX_README_BYTES


def test_the_readme_names_the_two_commands():
    text = README.read_text(encoding="utf-8")
    assert "`make demo`" in text
    assert "`make test`" in text


@pytest.mark.parametrize("row", table(README, "device"), ids=lambda row: row[0])
def test_the_table_of_devices_holds(row):
    """Context, and for the published sizes file and memory, are what we count, within 5 %."""
    _, options, context, bundle, memory = row
    config = parse_export(options.strip("`").split())
    assert config is not None
    assert config.shapes.cache_length == int(context)
    name = options.split("--size ")[1].split()[0].strip("`")
    size = next((size for size in known_sizes() if size.name == name), None)
    if size is not None:
        stored = size.recipes[config.recipe]
        assert float(bundle.split()[0]) == pytest.approx(stored.size_bytes / 1e9, rel=0.05)
        need = size.need_bytes(config.recipe, config.shapes.cache_length, config.runtimes[0])
        assert memory == f"{need / 1e9:.1f} GB"


def test_the_defaults_that_the_readme_names():
    assert {device.recipe for device in DEVICES.values()} == {"int8"}
    assert {device.runtimes for device in DEVICES.values()} == {("litert",)}


@pytest.mark.parametrize("language", ["kotlin", "js"])
def test_names_in_examples_exist(language):
    """Every class and function that an example of another language uses is one of ours."""
    folder = {"kotlin": "android_demo", "js": "exporter/webpage"}[language]
    suffix = {"kotlin": ".kt", "js": ".js"}[language]
    sources = (ROOT / folder).rglob(f"*{suffix}")
    known = set(re.findall(r"\w+", "".join(path.read_text(encoding="utf-8") for path in sources)))
    known |= {"append", "print"}  # the languages' own
    for page in PAGES:
        for block in blocks(page):
            if block.language == language:
                code = re.sub(r'"[^"]*"|//.*', "", block.text)
                assert not set(re.findall(r"\b[A-Z]\w+|\w+(?=\()", code)) - known, block.where


def test_quoted_errors_are_what_the_code_says():
    """A heading in backticks is a message, … for what differs: its parts are in one message."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `([^`]+)`$", text, re.MULTILINE)
    assert len(quoted) > 20
    messages = list(_messages())
    for heading in quoted:
        pattern = re.compile(".*".join(map(re.escape, heading.split("…"))), re.DOTALL)
        assert any(pattern.search(message) for message in messages), heading


def _messages() -> Sequence[str]:
    """The texts in our code, … for what is put into them."""
    paths = [path for name in ("exporter", "runtime_py") for path in (ROOT / name).rglob("*.py")]
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                ]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("package", ["exporter", "runtime_py"])
def test_the_rooms_are_those_of_the_import_contracts(package):
    """docs/architecture.md lists them from top to bottom, as pyproject.toml does."""
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (layers,) = [
        contract["layers"] for contract in contracts if contract.get("containers") == [package]
    ]
    rank = {name.strip(): i for i, layer in enumerate(layers) for name in re.split("[|:]", layer)}
    rows = table(ROOT / "docs" / "architecture.md", f"`{package}/`")
    shown = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert {*shown, "__main__"} == set(rank)
    assert shown == sorted(shown, key=rank.__getitem__)


def test_scripts_that_contributing_names_exist():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:tests|runtime_py)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for path in re.findall(r"`((?:exporter|runtime_py|tests|docs)/[^`*{}]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path
