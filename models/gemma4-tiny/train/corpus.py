"""The corpus: the reStructuredText sources of the Python 3.11 documentation.

They come from Debian's package ``python3.11-doc``, found by its name. A fixed list of files is
held out: nothing in this folder trains on them, neither the tokenizer nor the models.
"""

import logging
import re
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

PACKAGE = "python3.11-doc"
SKIPPED_FOLDERS = ("whatsnew", "changelog")

# About 3 % of the text, chosen by hand so that every kind of page is there.
HELD_OUT_FILES = frozenset(
    {
        "c-api/dict.rst.txt",
        "c-api/iter.rst.txt",
        "faq/library.rst.txt",
        "howto/sorting.rst.txt",
        "library/bisect.rst.txt",
        "library/calendar.rst.txt",
        "library/configparser.rst.txt",
        "library/csv.rst.txt",
        "library/fractions.rst.txt",
        "library/heapq.rst.txt",
        "library/shutil.rst.txt",
        "library/statistics.rst.txt",
        "library/textwrap.rst.txt",
        "library/zipfile.rst.txt",
        "tutorial/errors.rst.txt",
    }
)

MAX_ANSWER_CHARS = 900
MIN_ANSWER_CHARS = 80

HEADING = re.compile(r"^(?P<title>\S[^\n]*)\n(?P<line>([=\-~^*\"'#+.])\3{2,})[ \t]*$", re.MULTILINE)
SYMBOL = re.compile(
    r"^\.\. (?:c:)?(?:function|method|class|data|exception|attribute|classmethod|staticmethod"
    r"|macro|type|decorator):: (?P<signature>\S[^\n]*)\n(?P<body>(?:[ \t]+[^\n]*\n|\n)+)",
    re.MULTILINE,
)
MARKUP = re.compile(r":[\w:]+:`[~!]?([^`<]*)(?: <[^>]*>)?`|`+([^`]*)`+_?")
SILENT = re.compile(r"^[ \t]*\.\. (?:_[^\n]*:|index::[^\n]*|highlight::[^\n]*|only::[^\n]*)\n?")

SECTION_REQUESTS = (
    "Explain {name}.",
    'Explain "{name}" from the {page} documentation.',
    'Show me the section "{name}" of {page}.',
    "Write the documentation of {name}.",
)
SYMBOL_REQUESTS = (
    "Explain {name}.",
    "What does {name} do?",
    "How do I use {name}?",
    "Document {name} from {page}.",
)


@dataclass(frozen=True)
class Document:
    """One source page; ``name`` is its path below ``_sources``."""

    name: str
    text: str


@dataclass(frozen=True)
class Chat:
    """A request and the piece of documentation that answers it."""

    request: str
    answer: str


def fetch(work: Path) -> Path:
    """Download and unpack the documentation package below ``work``; return the unpacked folder."""
    folder = work / "corpus"
    if folder.exists():
        return folder
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", PACKAGE], cwd=work, check=True)
    package = max(work.glob(f"{PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    return folder


def read(folder: Path) -> list[Document]:
    """Read all pages below ``folder``, in the order of their names, without the change logs."""
    documents = []
    for path in sorted(folder.glob("**/_sources/**/*.rst.txt")):
        name = path.as_posix().rpartition("/_sources/")[2]
        if not any(part in name for part in SKIPPED_FOLDERS):
            documents.append(Document(name, path.read_text(encoding="utf-8")))
    if not documents:
        raise FileNotFoundError(
            f"{folder}: no file **/_sources/**/*.rst.txt; unpack the Debian package {PACKAGE} there"
        )
    return documents


def split(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """Return (documents to train on, held-out documents)."""
    train = [document for document in documents if document.name not in HELD_OUT_FILES]
    held_out = [document for document in documents if document.name in HELD_OUT_FILES]
    log.info("corpus    %d files to train on, %d held out", len(train), len(held_out))
    return train, held_out


def sections(document: Document) -> Iterator[tuple[str, str]]:
    """Yield (title, body) of each section; a body ends where the next heading begins."""
    headings = list(HEADING.finditer(document.text))
    ends = [heading.start() for heading in headings[1:]] + [len(document.text)]
    for heading, end in zip(headings, ends, strict=False):
        body = document.text[heading.end() : end]
        # A heading may also be overlined: that line belongs to the next heading.
        yield heading["title"], re.sub(r"\n([=\-*#])\1+\n$", "\n", body)


def plain(markup: str) -> str:
    """Drop roles and backquotes: what a person would type for this title or name."""
    return MARKUP.sub(lambda found: found[1] or found[2] or "", markup).strip()


def shorten(body: str) -> str:
    """Keep whole paragraphs up to MAX_ANSWER_CHARS characters; drop labels and index entries."""
    kept, length = [], 0
    for paragraph in re.split(r"\n\s*\n", textwrap.dedent(body).strip("\n")):
        text = paragraph
        while (silent := SILENT.match(text)) is not None:
            text = text[silent.end() :]
        if not text.strip():
            continue
        length += len(text) + 2
        if length > MAX_ANSWER_CHARS:
            break
        kept.append(text)
    return "\n\n".join(kept).strip()


def chats(document: Document) -> list[Chat]:
    """Turn the sections and the described symbols of one page into requests with answers."""
    page = document.name.rpartition("/")[2].removesuffix(".rst.txt")
    found = [(SECTION_REQUESTS, plain(title), shorten(body)) for title, body in sections(document)]
    for symbol in SYMBOL.finditer(document.text):
        name = symbol["signature"].partition("(")[0].split()[-1]
        answer = shorten(f"``{symbol['signature']}``\n\n{textwrap.dedent(symbol['body'])}")
        found.append((SYMBOL_REQUESTS, name, answer))
    return [
        Chat(requests[index % len(requests)].format(name=name, page=page), answer)
        for index, (requests, name, answer) in enumerate(found)
        if name and len(answer) >= MIN_ANSWER_CHARS
    ]
