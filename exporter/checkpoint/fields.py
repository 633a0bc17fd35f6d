"""Typed access to the values of a checkpoint's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.errors import ExportError
from runtime_py.terminal.printable import shown

MAX_SIZE = 2**24
REQUIRED = object()


@dataclass(frozen=True)
class Fields:
    """One JSON object; every error names the file and the key."""

    values: Mapping[str, Any]
    where: str

    def integer(self, key: str, low: int = 1, high: int = MAX_SIZE, default: Any = REQUIRED) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: Any = REQUIRED) -> float:
        """A number with low < value <= high."""
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
            raise self.wrong(key, f"a number above {low:g} and up to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def optional(self, key: str) -> bool:
        """Whether the key exists and is not null."""
        return self.values.get(key) is not None

    def fields(self, key: str) -> "Fields":
        value = self._get(key, REQUIRED)
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(value, f"{self.where}: {key}")

    def refuse(self, key: str, allowed: tuple[Any, ...], reason: str) -> None:
        """Refuse every value but the allowed ones; the key may be missing."""
        if key in self.values and self.values[key] not in allowed:
            raise ExportError(
                f"{self.where}: {key} is {shown(repr(self.values[key]))}, {reason}; supported: "
                f"{' or '.join(shown(repr(value)) for value in allowed)}"
            )

    def wrong(self, key: str, needed: str) -> ExportError:
        found = shown(repr(self.values[key])) if key in self.values else "absent"
        return ExportError(
            f"{self.where}: {shown(key)} is {found}, needed {needed}; "
            "get the checkpoint's own config.json"
        )

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is REQUIRED:
            raise self.wrong(key, "a value")
        return default if value is None else value
