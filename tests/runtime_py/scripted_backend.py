"""A backend whose target is a hash of the KV rows: a wrong row or position shows at once."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from runtime_py.backends import FloatArray
from runtime_py.decoding.policy import Outcome, Round

HIDDEN_SIZE = 4


class ScriptedBackend:
    """Logits at position p depend on every row 0 .. p: on exactly the tokens written there.

    The drafter knows the target's logits and blurs them: `skill` is the share of positions where
    it proposes from the target's own logits. It reads committed rows only, and its hidden state
    must be the one of the position it drafts from.
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
        verify_widths: tuple[int, ...] = (1, 2, 4, 8),
    ) -> None:
        self.skill = skill
        self.vocab_size = vocab_size
        self.cache_length = cache_length
        self.verify_widths = verify_widths
        self.rows = [-1] * cache_length
        self.num_calls = {"prefill": 0, "verify": 0, "draft": 0}
        self.num_prefilled = 0
        self._position = -1  # of the round being drafted

    def _write(self, token_ids: Sequence[int], position: int, width: int) -> None:
        assert position + width <= self.cache_length, "rows past the KV buffer"
        padding = [-2] * (width - len(token_ids))
        self.rows[position : position + width] = [*token_ids, *padding]

    def _rng(self, tokens: Sequence[int], what: str) -> np.random.Generator:
        digest = hashlib.sha256(repr((what, list(tokens))).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def target_logits(self, tokens: Sequence[int]) -> FloatArray:
        assert min(tokens) >= 0, "attended a row that nothing was written to"
        return self._rng(tokens, "logits").normal(0, 3, self.vocab_size).astype(np.float32)

    def hidden(self, tokens: Sequence[int]) -> FloatArray:
        return self._rng(tokens, "hidden").normal(size=HIDDEN_SIZE).astype(np.float32)

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        self.num_calls["prefill"] += 1
        self.num_prefilled += len(token_ids)
        self._write(token_ids, position, len(token_ids))

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        self.num_calls["verify"] += 1
        width = next(width for width in self.verify_widths if width >= len(token_ids))
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
        committed = self.rows[:position]
        if position != self._position:
            self.start_round()
            self._position = position
        if not self._drafted:
            np.testing.assert_array_equal(hidden, self.hidden(committed))
        self._drafted.append(token_id)
        tokens = [*committed, *self._drafted]
        logits = self.target_logits(tokens)
        if self._rng(tokens, "skill").random() >= self.skill:
            logits = np.roll(logits, 1)
        return logits, hidden

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
