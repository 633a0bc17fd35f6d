"""Names a user chooses from, and the one that was meant where none is right."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import click


class Choice(click.Choice[str]):
    """Names in any case; for an unknown one the nearest is suggested."""

    def __init__(self, choices: Sequence[str]) -> None:
        super().__init__(choices, case_sensitive=False)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return super().get_invalid_choice_message(value, ctx) + nearest(str(value), self.choices)


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to a complaint about a name that may be misspelt or cut short; often nothing."""
    asked, names = name.lower(), list(known)
    cut_short = [each for each in names if asked and asked in each]
    found = cut_short or get_close_matches(asked, names, n=1)
    return f" Did you mean {found[0]}?" if found else ""
