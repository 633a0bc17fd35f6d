"""Hide what libraries say that a user cannot act upon: each fence names what it hides."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def only_errors(*loggers: str) -> Iterator[None]:
    """Hide Python warnings, and what these loggers say below an error.

    A filter, not a level: torch sets the levels of its loggers when it is imported.
    """
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, loggers):
            logger.addFilter(_is_error)
            stack.callback(logger.removeFilter, _is_error)
        yield


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
