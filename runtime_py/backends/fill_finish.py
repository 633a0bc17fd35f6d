"""The backend of a model that consists of fill, finish and draft, whichever runtime runs them.

The target is two graphs because a runtime repacks the weights of each graph for itself: fill writes
the KV rows, finish has the layers that own none, and no weight is in both.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from runtime_py.backends import FloatArray, check_draft, check_request, check_verify
from runtime_py.backends.kv_pages import KvPages
from runtime_py.errors import RunError

# The numbers that every such model brings.
NAMES = (
    "format_version",
    "context_length",
    "vocab_size",
    "hidden_size",
    "max_prefill_length",
    "max_verify_length",
    "has_drafter",
)


class Graphs(Protocol):
    """The three graphs of one model, loaded, over one KV buffer.

    FillFinishBackend calls them with requests that it has checked.
    """

    def fill(self, token_ids: Sequence[int], position: int) -> None:
        """Write the KV rows of at most max_prefill_length tokens."""
        ...

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        """Fill, then finish; returns logits [T, V] and hidden states [T, D]."""
        ...

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        """One drafter step; returns logits [V] and projected hidden state [D]."""
        ...

    def close(self) -> None: ...


class FillFinishBackend:
    """A Backend over three graphs.

    Args:
        path: of the model's first file, for errors.
        numbers: all of NAMES, as check_numbers accepts them.
        graphs: closed with this backend.
        pages: of the KV buffer that the graphs share; closed before they are.
    """

    def __init__(
        self, path: Path, numbers: Mapping[str, int], graphs: Graphs, pages: KvPages
    ) -> None:
        self._path = path
        self._numbers = numbers
        self._graphs = graphs
        self._pages = pages

    @property
    def vocab_size(self) -> int:
        return self._numbers["vocab_size"]

    @property
    def hidden_size(self) -> int:
        return self._numbers["hidden_size"]

    @property
    def cache_length(self) -> int:
        return self._numbers["context_length"]

    @property
    def verify_widths(self) -> tuple[int, ...]:
        return tuple(range(1, self._numbers["max_verify_length"] + 1))

    @property
    def has_drafter(self) -> bool:
        return bool(self._numbers["has_drafter"])

    @property
    def resumable_from(self) -> int:
        return self._pages.resumable_from

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        check_request(self, token_ids, position)
        longest = self._numbers["max_prefill_length"]
        for done in range(0, len(token_ids), longest):
            self._pages.before(position + done)
            self._graphs.fill(token_ids[done : done + longest], position + done)

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        check_verify(self, token_ids, position)
        self._pages.before(position)
        return self._graphs.verify(token_ids, position)

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        if not self.has_drafter:
            raise RunError(f"{self._path}: no drafter in this bundle; export again with a drafter")
        check_draft(self, token_id, position)
        return self._graphs.draft(token_id, hidden, position)

    def close(self) -> None:
        """Free the graphs; neither the backend nor arrays it returned can be used afterwards."""
        self._pages.close()
        self._graphs.close()


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
