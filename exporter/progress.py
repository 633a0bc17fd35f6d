"""How a stage shows a person how far it is: the command line gives a bar, a library caller none."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# (title, total, unit) -> a context that yields the function to call with what is done.
Bar = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


def no_bar(_title: str, _total: int, _unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """For callers that show no progress."""
    return nullcontext(lambda _: None)
