"""The one error the exporter raises for its user's input."""


class ExportError(Exception):
    """One line: what, where, what was found, what is needed, what to do next."""


def shown(value: object) -> str:
    """What a file holds, fit for a message: one short line, printable whatever it is."""
    text = "".join(char if char.isprintable() else "?" for char in str(value)[:200])
    return text if len(text) <= 80 else text[:77] + "..."
