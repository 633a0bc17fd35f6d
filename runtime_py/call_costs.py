"""Seconds per call, as they are now: what draft_length.py decides by.

Only sums, products, quotients and comparisons, in an order that is written out, as there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COMMON_RATE, OWN_RATE = 0.1, 0.03  # how fast costs follow what was measured
NUM_MEASURED = 5.0  # calls that the costs of the beginning stand for
# Times its cost: no call counts as more, nor the middle of n calls as n times as far above it.
OUTLIER = 1.2


class Costs:
    """Seconds per call, as they are now.

    Args:
        draft: one draft step, as measured.
        verify: by the number of tokens of a target call, from 1, which is decode; what lies
            between two numbers costs what lies between, and more costs what the most costs.
    """

    def __init__(self, draft: float, verify: Mapping[int, float]) -> None:
        measured = sorted(verify.items())
        self._verify = [
            _Cost(_between(measured, num_tokens)) for num_tokens in range(measured[-1][0] + 1)
        ]
        self._draft = _Cost(draft)
        self._common = 1.0

    @property
    def draft(self) -> float:
        return self._common * self._draft.seconds

    def verify(self, num_tokens: int) -> float:
        return self._common * self._of(num_tokens).seconds

    def rounds(self, lengths: Sequence[int]) -> list[float]:
        """Seconds of a round with each number of drafts, all verified."""
        common, draft_s = self._common, self._draft.seconds
        return [common * (length * draft_s + self._of(length + 1).seconds) for length in lengths]

    def observe_draft(self, seconds: float) -> None:
        self._follow(self._draft, seconds, 1)

    def observe_verify(self, num_tokens: int, seconds: float) -> None:
        self._follow(self._of(num_tokens), seconds, 1)

    def observe_decodes(self, seconds: Sequence[float]) -> None:
        """Several in a row: their middle counts, for as many as they are."""
        num_calls = len(seconds)
        self._follow(self._of(1), sorted(seconds)[num_calls // 2], num_calls)

    def _of(self, num_tokens: int) -> "_Cost":
        return self._verify[min(num_tokens, len(self._verify) - 1)]

    def _follow(self, cost: "_Cost", seconds: float, num_calls: int) -> None:
        ratio = seconds / (self._common * cost.seconds)
        most = 1 + num_calls * (OUTLIER - 1)
        change = min(max(ratio, 1 / most), most) - 1
        common, own = num_calls * COMMON_RATE, num_calls * OWN_RATE
        cost.num_seen += num_calls
        self._common *= 1 + common / (1 + common) * change
        cost.seconds *= 1 + max(own / (1 + own), num_calls / cost.num_seen) * change


@dataclass(slots=True)
class _Cost:
    seconds: float  # but for what all costs have in common
    num_seen: float = NUM_MEASURED


def _between(measured: Sequence[tuple[int, float]], num_tokens: int) -> float:
    below = measured[0]
    for above in measured:
        if above[0] >= num_tokens:
            if above[0] == below[0]:
                return above[1]
            share = (num_tokens - below[0]) / (above[0] - below[0])
            return below[1] + share * (above[1] - below[1])
        below = above
    return below[1]
