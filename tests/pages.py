"""What a reader finds in README and docs: blocks, commands, links, headings."""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (
    README,
    ROOT / "CHANGELOG.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    ROOT / "android_demo" / "README.md",
    ROOT / "models" / "gemma4-tiny" / "README.md",
    ROOT / "tests" / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
SHELLS = ("console", "sh")  # "$ " before a command and output without; commands and comments


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int  # of its first line of text, from 1
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a block."""

    where: str  # page:line
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def blocks(page: Path) -> list[Block]:
    return [
        Block(page, 2 + (token.map or [0])[0], token.info.strip(), token.content)
        for token in _tokens(page)
        if token.type == "fence"
    ]


def has_indented_blocks(page: Path) -> bool:
    return any(token.type == "code_block" for token in _tokens(page))


def commands() -> list[Command]:
    """Of all pages, in their order; what stands between && is one each."""
    return [
        command
        for page in PAGES
        for block in blocks(page)
        if block.language in SHELLS
        for command in _commands(block)
    ]


def links(page: Path) -> Iterator[str]:
    """What the page leads to, pictures included."""
    for token in _tokens(page):
        for part in [token, *(token.children or [])]:
            if part.type == "link_open":
                yield str(part.attrs["href"])
            elif part.type.startswith("html_"):
                yield from re.findall(r'(?:src|href)="([^"]+)"', part.content)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    tokens = _tokens(page)
    headings = [after for before, after in itertools.pairwise(tokens) if _opens(before)]
    texts = ["".join(part.content for part in heading.children or []) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def table(page: Path, first_column: str) -> list[list[str]]:
    """The rows of the one table that begins with a column of that name."""
    lines = page.read_text(encoding="utf-8").splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _opens(token: Token) -> bool:
    return token.type == "heading_open"


def _commands(block: Block) -> Iterator[Command]:
    for number, line in enumerate(block.text.splitlines()):
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                page, _, first = block.where.rpartition(":")
                yield Command(f"{page}:{int(first) + number}", tuple(words))
                words = []
