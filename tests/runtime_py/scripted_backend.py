"""A backend whose target is a hash of the KV rows: a wrong row or position shows at once.

Its twins in Kotlin and JavaScript (ScriptedBackend.kt, scripted_backend.mjs) compute the same
floats: they are small multiples of 2**-20, so that every step is exact.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from runtime_py.backends import FloatArray
from runtime_py.decoding.policy import Outcome, Round

HIDDEN_SIZE = 4
TICK = 2.0**-16  # seconds: so many of them add up exactly
_NEVER_WRITTEN, _PADDING = -1, -2
_LOGITS, _HIDDEN, _SKILL = 1, 2, 3
_STEP = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


class ScriptedBackend:
    """Logits at position p depend on every row 0 .. p: on exactly the tokens written there.

    The drafter knows the target's logits and shifts some of them. It reads committed rows only,
    and its hidden state must be the one of the position it drafts from.

    Args:
        skill: share of positions where the drafter proposes from the target's own logits; whole
            percent.
        levels: 0 for logits that are reals in -8 .. 8, else so many whole numbers: full of ties.
        ticks: what calls cost on the backend's own clock, in TICK: a draft, then target calls by
            width.
    """

    has_drafter = True
    resumable_from = 0
    hidden_size = HIDDEN_SIZE

    def __init__(
        self,
        *,
        skill: float = 0.7,
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
        self.verify_ticks = dict(zip(verify_widths, ticks[1:], strict=False))
        self.rows = [_NEVER_WRITTEN] * cache_length
        self.num_calls = {"prefill": 0, "verify": 0, "draft": 0}
        self.num_prefilled = 0
        self._ticks = 0
        self._position = -1  # of the round being drafted

    def seconds(self) -> float:
        """Its clock, for the loop to look at."""
        return self._ticks * TICK

    def _write(self, token_ids: Sequence[int], position: int, width: int) -> None:
        assert position + width <= self.cache_length, "rows past the KV buffer"
        padding = [_PADDING] * (width - len(token_ids))
        self.rows[position : position + width] = [*token_ids, *padding]

    def target_logits(self, tokens: Sequence[int]) -> FloatArray:
        assert min(tokens) >= 0, "attended a row that nothing was written to"
        return hashed_logits(hashed(tokens, _LOGITS), self.vocab_size, self.levels)

    def hidden(self, tokens: Sequence[int]) -> FloatArray:
        return hashed_logits(hashed(tokens, _HIDDEN), HIDDEN_SIZE, 0)

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        self.num_calls["prefill"] += 1
        self.num_prefilled += len(token_ids)
        self._write(token_ids, position, len(token_ids))

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        self.num_calls["verify"] += 1
        width = next(width for width in self.verify_widths if width >= len(token_ids))
        self._ticks += self.verify_ticks.get(width, 0)
        self._write(token_ids, position, width)
        prefixes = [self.rows[: position + i + 1] for i in range(len(token_ids))]
        self.start_round()
        return (
            np.stack([self.target_logits(prefix) for prefix in prefixes]),
            np.stack([self.hidden(prefix) for prefix in prefixes]),
        )

    def start_round(self) -> None:
        """The next draft is the first of its round."""
        self._drafted: list[int] = []
        self._position = -1

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        self.num_calls["draft"] += 1
        self._ticks += self.draft_ticks
        committed = self.rows[:position]
        if position != self._position:
            self.start_round()
            self._position = position
        if not self._drafted:
            np.testing.assert_array_equal(hidden, self.hidden(committed))
        self._drafted.append(token_id)
        tokens = [*committed, *self._drafted]
        logits = self.target_logits(tokens)
        right = (hashed(tokens, _SKILL) >> 40) % 100 < round(100 * self.skill)
        return logits if right else np.roll(logits, 1), hidden

    def close(self) -> None:
        pass


class ForgetfulBackend(ScriptedBackend):
    """Sees the last `window` rows only, and keeps but a few more of those behind them."""

    window, margin = 6, 4

    def _write(self, token_ids: Sequence[int], position: int, width: int) -> None:
        kept = position - self.window - self.margin
        if position == 0:
            self.resumable_from = 0
            self.rows = [-1] * self.cache_length
        elif kept > max(0, self.resumable_from - self.window):
            self.rows[:kept] = [-1] * kept
            self.resumable_from = kept + self.window
        super()._write(token_ids, position, width)

    def target_logits(self, tokens: Sequence[int]) -> FloatArray:
        return super().target_logits(tokens[-self.window :])

    def hidden(self, tokens: Sequence[int]) -> FloatArray:
        return super().hidden(tokens[-self.window :])


class Adversary:
    """A draft-length policy without sense: any rounds, over and over; keeps what it is told."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        self._rounds = itertools.cycle(rounds)
        self.seen: list[Outcome] = []

    @classmethod
    def random(cls, seed: int) -> "Adversary":
        rng = np.random.default_rng(seed)
        return cls([Round(int(rng.integers(8)), bool(rng.random() < 0.8)) for _ in range(97)])

    def next_round(self) -> Round:
        return next(self._rounds)

    def observe(self, outcome: Outcome) -> None:
        self.seen.append(outcome)


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


def hashed(tokens: Sequence[int], what: int) -> int:
    state = what
    for token in tokens:
        state = _mix((state + _STEP * (token + 1)) & _MASK)
    return state


def _mix(z: int) -> int:
    """Steele, Lea and Flood's splitmix64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
