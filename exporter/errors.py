"""The one error the exporter raises for its user's input."""

from runtime_py.terminal.choice import nearest as nearest
from runtime_py.terminal.printable import shown as shown


class ExportError(Exception):
    """One line: what, where, what was found, what is needed, what to do next."""


class NotFiniteError(ExportError):
    """A weight is NaN or infinite."""
