"""How a stage reports progress: the command line shows a bar, a library caller may not."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# (title, total, unit) -> a context that yields a function; call it with the amount done.
Bar = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


def no_bar(_title: str, _total: int, _unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda _: None)
