"""The one error the exporter raises for its user's input."""

from collections.abc import Iterable
from difflib import get_close_matches

from runtime_py.terminal.printable import shown as shown


class ExportError(Exception):
    """One line: what, where, what was found, what is needed, what to do next."""


class NotFiniteError(ExportError):
    """A weight is NaN or infinite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to a complaint about a name that may be a misspelt one; often nothing."""
    found = get_close_matches(name.lower(), list(known), n=1)
    return f" Did you mean {found[0]}?" if found else ""
