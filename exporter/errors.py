"""The one error the exporter raises for its user's input."""


class ExportError(Exception):
    """One line: what, where, what was found, what is needed, what to do next."""
