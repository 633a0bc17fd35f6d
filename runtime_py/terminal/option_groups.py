"""Groups of a command's options as dataclasses, so that mypy checks what a command takes."""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
Options = TypeVar("Options")


def as_one(
    kind: type[Options], *decorators: Callable[[Any], Any]
) -> Callable[[Callable[Concatenate[Options, P], R]], Callable[P, R]]:
    """A decorator that adds options to a command and passes their values to it as one `kind`.

    The value is the command's first positional argument; of several such decorators, the one next
    to the command comes first.

    Args:
        kind: a dataclass with a field for each option.
        decorators: click's, in the order of the help.
    """

    def decorate(command: Callable[Concatenate[Options, P], R]) -> Callable[P, R]:
        @wraps(command)
        def called(*args: P.args, **values: P.kwargs) -> R:
            own = {name: values.pop(name) for name in names_of(kind)}
            return command(kind(**own), *args, **values)

        for decorator in reversed(decorators):
            called = decorator(called)
        return called

    return decorate


def names_of(kind: type[Any]) -> tuple[str, ...]:
    """The fields of a dataclass."""
    return tuple(field.name for field in fields(cast(Any, kind)))
