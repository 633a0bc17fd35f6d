"""A drafter, and a target, that say what a script says, at the cost of the real ones.

Every call runs the real graphs on the real inputs; only the logits that it returns are made up: one
winner, over as many tokens. A replay, not a measurement of what any drafter gets right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_py.backends import Backend, FloatArray

Hits = npt.NDArray[np.bool_]

# The share of rounds in which draft 1, 2, 3 and all before it were accepted: what facts/gemma4.md
# has "by position", as serving engines count it and as a bundle's reference does. It falls more
# slowly than the product of its terms would, so these are not the shares of each draft by itself.
E2B = (0.84, 0.60, 0.39)


def conditional(cumulative: Sequence[float]) -> tuple[float, ...]:
    """Of the drafts that were reached, those before them having been accepted, the share kept."""
    before = (1.0, *cumulative[:-1])
    return tuple(share / reached for share, reached in zip(cumulative, before, strict=True))


@dataclass(frozen=True)
class Stretch:
    """Text of one kind."""

    num_tokens: int
    shares: tuple[float, ...]  # conditional; the last holds for all later drafts


def draw_hits(stretches: Sequence[Stretch], num_tokens: int, longest: int, seed: int) -> Hits:
    """[tokens, longest]: would draft k after token t be right, had those before it been?

    The stretches follow each other again and again. Whatever the draft length, the same drafts are
    right, so that all candidates meet the same luck.
    """
    rows = []
    while len(rows) < num_tokens:
        for one in stretches:
            later = (one.shares[-1],) * max(longest - len(one.shares), 0)
            rows += [(*one.shares, *later)[:longest]] * one.num_tokens
    uniform = np.random.default_rng(seed).random((num_tokens, longest))
    return np.asarray(uniform < np.array(rows[:num_tokens]))


@dataclass(frozen=True)
class Script:
    """What is to be said."""

    text: Sequence[int]  # prompt and all that follows
    hits: Hits | None  # by position of the token drafted after; None: every draft is wrong


class PlayedDrafter:
    """A backend whose drafts are right where the script says so, and wrong everywhere else.

    A wrong draft is the token after the right one in the vocabulary: it is never what the target
    chooses, because the script's text is what the target says (recorded, or made by PlayedTarget).
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._logits = np.zeros(backend.vocab_size, np.float32)
        self._winner = 0
        self._num_drafted = 0  # in the round
        self.script: Script | None = None  # None: the real drafter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        logits, projected = self._backend.draft(token_id, hidden, position)
        if self.script is None:
            return logits, projected
        self._num_drafted += 1
        text, hits = self.script.text, self.script.hits
        # Past the end of a recorded text any draft is as good as any other.
        right = text[min(position + self._num_drafted, len(text) - 1)]
        hit = hits is not None and bool(hits[position, self._num_drafted - 1])
        self._logits[self._winner] = 0.0
        self._winner = right if hit else (right + 1) % len(self._logits)
        self._logits[self._winner] = 1.0
        return self._logits, projected

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        self._num_drafted = 0
        return self._backend.verify(token_ids, position)


class PlayedTarget:
    """A backend whose target continues the script's text, whatever its weights would say."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._logits = np.zeros((backend.verify_widths[-1], backend.vocab_size), np.float32)
        self._winners = [0] * len(self._logits)
        self.text: Sequence[int] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        _, hidden = self._backend.verify(token_ids, position)
        for index in range(len(token_ids)):
            self._logits[index, self._winners[index]] = 0.0
            self._winners[index] = self.text[position + index + 1]
            self._logits[index, self._winners[index]] = 1.0
        return self._logits[: len(token_ids)], hidden
