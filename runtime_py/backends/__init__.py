"""The interface between the speculative loop and a runtime."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime_py.errors import RunError

FloatArray = npt.NDArray[np.float32]

MAX_THREADS = 256
_MAX_DEFAULT_THREADS = 4  # phones and boards have at most four fast cores


def default_num_threads() -> int:
    """The cores this process may use, at most 4."""
    if hasattr(os, "sched_getaffinity"):
        return min(_MAX_DEFAULT_THREADS, len(os.sched_getaffinity(0)))
    return min(_MAX_DEFAULT_THREADS, os.cpu_count() or 1)


@dataclass(frozen=True)
class SessionOptions:
    """How to run a bundle's graphs.

    Raises:
        RunError: for a value out of range.
    """

    num_threads: int | None = None  # None: the cores, at most 4
    providers: tuple[str, ...] = ()  # onnxruntime's, best first; none: the CPU's

    def __post_init__(self) -> None:
        if self.num_threads is not None and not 1 <= self.num_threads <= MAX_THREADS:
            raise RunError(f"threads is {self.num_threads}; it must be 1 .. {MAX_THREADS}")


class Backend(Protocol):
    """An exported target and drafter over one shared KV buffer.

    KV rows are addressed by position. Rows at or past the caller's committed length are stale and
    may be overwritten at any time. Arrays that a method returns stay valid until the next call.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def cache_length(self) -> int:
        """KV rows: no token can be processed at a position at or past it."""
        ...

    @property
    def verify_widths(self) -> tuple[int, ...]:
        """Tokens per target call, ascending; the first is 1, the decode graph."""
        ...

    @property
    def has_drafter(self) -> bool: ...

    @property
    def resumable_from(self) -> int:
        """The smallest committed length, besides 0, at which the sequence can resume.

        Below it, rows that sliding layers would read were released. It is at least MARGIN
        (kv_rows.py) below the position of the last call; a call at position 0 sets it to 0.
        """
        ...

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        """Write the KV rows position .. position + len(token_ids) - 1."""
        ...

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        """Run the target over T tokens, T at most the widest verify graph.

        Returns:
            logits [T, V] and post-norm hidden states [T, D]; row i follows token_ids[i].
        """
        ...

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        """Run one drafter step; reads the KV rows 0 .. position - 1 and writes none.

        Args:
            token_id: the last token, emitted or drafted.
            hidden: [D] the target's hidden state that produced the last emitted token, or the
                projected hidden state of the draft step before.
            position: that of the last emitted token, the same for every step of a round.

        Returns:
            logits [V] and projected hidden state [D].
        """
        ...

    def close(self) -> None: ...


def check_request(backend: Backend, token_ids: Sequence[int], position: int) -> None:
    """Refuse rows past the KV buffer and tokens outside the vocabulary before native code runs.

    Raises:
        RunError: naming what was asked for and what the bundle has.
    """
    end = position + len(token_ids)
    if not token_ids or position < 0 or end > backend.cache_length:
        raise RunError(
            f"{len(token_ids)} tokens at position {position}: the cache of this bundle holds "
            f"rows 0 to {backend.cache_length - 1}; shorten the prompt or export with --context"
        )
    vocab_size = backend.vocab_size
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise RunError(
                f"token id {token_id}: this bundle has 0 to {vocab_size - 1}; use the tokenizer "
                "of the bundle"
            )


def check_verify(backend: Backend, token_ids: Sequence[int], position: int) -> None:
    """As check_request; the tokens must also fit the widest verify graph.

    Raises:
        RunError: naming what was asked for and what the bundle has.
    """
    check_request(backend, token_ids, position)
    widest = backend.verify_widths[-1]
    if len(token_ids) > widest:
        raise RunError(
            f"{len(token_ids)} tokens to verify, the widest graph of this bundle takes {widest}; "
            "draft fewer tokens at a time"
        )


def check_draft(backend: Backend, token_id: int, position: int) -> None:
    """As check_request; a draft also needs a committed row to read.

    Raises:
        RunError: naming what was asked for and what the bundle has.
    """
    check_request(backend, (token_id,), position)
    if position < 1:
        raise RunError(
            f"a draft at position {position}: the drafter reads committed rows; prefill or verify "
            "a token first, then draft at position 1 or later"
        )
