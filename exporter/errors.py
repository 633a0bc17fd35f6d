"""The one error the exporter raises for its user's input."""


class ExportError(Exception):
    """One line: what, where, what was found, what is needed, what to do next."""


class NotFiniteError(ExportError):
    """A weight is NaN or infinite."""


def shown(value: object, limit: int = 80) -> str:
    """What a file or a user wrote, fit for a message: one short line, printable whatever it is."""
    text = "".join(char if char.isprintable() else "?" for char in str(value)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."
