"""The numbers that a model of fill, finish and draft brings, for every runtime that has those."""

from collections.abc import Mapping
from pathlib import Path

from runtime_py.errors import RunError

NAMES = (
    "format_version",
    "context_length",
    "vocab_size",
    "hidden_size",
    "max_prefill_length",
    "max_verify_length",
    "has_drafter",
)


def check_numbers(path: Path, numbers: Mapping[str, int], version: int, parts: str) -> None:
    """Refuse another format and sizes that make no sense.

    Args:
        path: of the file that the numbers are in.
        numbers: all of NAMES.
        version: the format that the backend reads.
        parts: what the file consists of, for the error.

    Raises:
        RunError: naming the number.
    """
    if numbers["format_version"] != version:
        raise RunError(
            f"{path}: its {parts} have version {numbers['format_version']}, this runtime reads "
            f"{version}; export again with the matching gemma-export"
        )
    for name in NAMES[1:-1]:
        if numbers[name] < 1:
            raise RunError(f"{path}: {name} is {numbers[name]}; export again")
    if numbers["max_verify_length"] > numbers["max_prefill_length"]:
        raise RunError(
            f"{path}: max_verify_length is {numbers['max_verify_length']}, above "
            f"max_prefill_length {numbers['max_prefill_length']}; export again"
        )
