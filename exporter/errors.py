"""The error that the exporter raises for bad input."""

from runtime_py.terminal.choice import nearest as nearest


class ExportError(Exception):
    """One line: where, what was found, what is needed, what to do next."""


class NotFiniteError(ExportError):
    """A weight is NaN or infinite."""
