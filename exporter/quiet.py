"""Hide what libraries say that a user cannot act upon: each fence names what it hides."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# torchao says that it lacks kernels for GPUs, and torch that torchao registers a type in an old
# way. Whoever imports it first has both: transformers, litert-torch or ExecuTorch.
TORCHAO = ("torchao", "torch.utils._pytree")


@contextmanager
def only_errors(*loggers: str) -> Iterator[None]:
    """Hide what these loggers say below an error.

    A filter, not a level: torch sets the levels of its loggers when it is imported.
    """
    with ExitStack() as stack:
        for logger in map(logging.getLogger, loggers):
            logger.addFilter(_is_error)
            stack.callback(logger.removeFilter, _is_error)
        yield


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
