"""Make foreign text safe to show: nothing in it controls the terminal.

Names, recipes, keys, file names and what a model says may hold control characters (which set a
terminal's title, colours or cursor) or characters that reverse the order of what follows.
"""

import re

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# C0 and C1 controls, the bidirectional embeddings, overrides and isolates, and halves of characters
# (bytes of a file name that is not UTF-8). Marks that join letters or emoji are kept.
_ACTING = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_ACTING}]")
_BETWEEN_WORDS = str.maketrans(dict.fromkeys("\t\n\v\f\r\x85\u2028\u2029", " "))


def printable(text: str) -> str:
    """Text of any number of lines; newlines and tabs are the only control characters kept."""
    return _IN_TEXT.sub(REPLACEMENT, text)


def one_line(value: object) -> str:
    """The same as one line, of any length."""
    return printable(str(value).translate(_BETWEEN_WORDS))


def shown(value: object, limit: int = 80) -> str:
    """What a file or a user wrote, for a message: one line of at most `limit` characters."""
    text = str(value)
    return one_line(text if len(text) <= limit else text[: limit - 3] + "...")
