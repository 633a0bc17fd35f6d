"""A backend whose floats another language can compute too: android_demo's ScriptedBackend.kt.

Logits at position p are a hash of exactly the tokens written to rows 0 .. p, so that a wrong row or
position shows at once; they are small multiples of 2**-20, so that every step is exact.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime_py.backends import FloatArray

_NEVER_WRITTEN, _PADDING = -1, -2
_HIDDEN_SIZE = 4
_LOGITS, _HIDDEN, _SKILL = 1, 2, 3
_STEP = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1

TICK = 2.0**-16  # seconds: so many of them add up exactly


class HashedBackend:
    """The drafter knows the target's logits and at `100 - skill` of 100 positions shifts them.

    Args:
        skill: in percent.
        levels: 0 for logits that are reals in -8 .. 8, else so many whole numbers: full of ties.
        ticks: what calls cost on the backend's own clock, in TICK: a draft, then target calls by
            width.
    """

    has_drafter = True
    resumable_from = 0
    hidden_size = _HIDDEN_SIZE

    def __init__(
        self,
        *,
        skill: int = 70,
        vocab_size: int = 40,
        cache_length: int = 128,
        verify_widths: Sequence[int] = (1, 2, 4, 8),
        levels: int = 0,
        ticks: Sequence[int] = (100, 1000, 1100, 1200, 1400),
    ) -> None:
        self.skill = skill
        self.vocab_size = vocab_size
        self.cache_length = cache_length
        self.verify_widths = tuple(verify_widths)
        self.levels = levels
        self.draft_ticks = ticks[0]
        self.verify_ticks = dict(zip(verify_widths, ticks[1:], strict=True))
        self._ticks = 0
        self._rows = [_NEVER_WRITTEN] * cache_length
        self._drafted: list[int] = []
        self._position = -1  # of the round being drafted

    def seconds(self) -> float:
        """Its clock, for the loop to look at."""
        return self._ticks * TICK

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        self._write(token_ids, position, len(token_ids))

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        width = next(width for width in self.verify_widths if width >= len(token_ids))
        self._write(token_ids, position, width)
        self._ticks += self.verify_ticks[width]
        self._position = -1
        prefixes = [self._rows[: position + i + 1] for i in range(len(token_ids))]
        return np.stack([self._logits(p) for p in prefixes]), np.stack(
            [self._hidden(p) for p in prefixes]
        )

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        self._ticks += self.draft_ticks
        committed = self._rows[:position]
        if position != self._position:
            self._position, self._drafted = position, []
            np.testing.assert_array_equal(hidden, self._hidden(committed))
        self._drafted.append(token_id)
        tokens = [*committed, *self._drafted]
        logits = self._logits(tokens)
        right = (_hash(tokens, _SKILL) >> 40) % 100 < self.skill
        return logits if right else np.roll(logits, 1), hidden

    def close(self) -> None:
        pass

    def _write(self, token_ids: Sequence[int], position: int, width: int) -> None:
        assert position + width <= self.cache_length, "rows past the KV buffer"
        padding = [_PADDING] * (width - len(token_ids))
        self._rows[position : position + width] = [*token_ids, *padding]

    def _logits(self, tokens: Sequence[int]) -> FloatArray:
        assert min(tokens) >= 0, "attended a row that nothing was written to"
        return hashed_logits(_hash(tokens, _LOGITS), self.vocab_size, self.levels)

    def _hidden(self, tokens: Sequence[int]) -> FloatArray:
        return hashed_logits(_hash(tokens, _HIDDEN), _HIDDEN_SIZE, 0)


def described(backend: HashedBackend) -> dict[str, Any]:
    """What another language needs to make the same."""
    return {
        "skill": backend.skill,
        "vocab_size": backend.vocab_size,
        "cache_length": backend.cache_length,
        "verify_widths": list(backend.verify_widths),
        "levels": backend.levels,
        "draft_ticks": backend.draft_ticks,
        "verify_ticks": list(backend.verify_ticks.values()),
    }


def hashed_logits(seed: int, size: int, levels: int) -> FloatArray:
    """[size] multiples of 2**-20 from -8 to 8, or whole numbers from 0 to levels - 1."""
    ids = np.arange(1, size + 1, dtype=np.uint64)
    z = np.uint64(seed) + np.uint64(_STEP) * ids
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    bits = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
    if levels:
        return (bits % np.uint64(levels)).astype(np.float32)
    return bits.astype(np.float32) / np.float32(1 << 20) - np.float32(8)


def _hash(tokens: Sequence[int], what: int) -> int:
    state = what
    for token in tokens:
        state = _mix((state + _STEP * (token + 1)) & _MASK)
    return state


def _mix(z: int) -> int:
    """Steele, Lea and Flood's splitmix64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
