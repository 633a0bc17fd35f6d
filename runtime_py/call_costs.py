"""Seconds per call, as they are now: what draft_length.py decides by.

Only sums, products, quotients and comparisons, in an order that is written out, as there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COMMON_RATE, OWN_RATE = 0.3, 0.03  # how fast costs follow what was measured
NUM_MEASURED = 5.0  # looks that the costs of the beginning stand for
# Times its cost: no call counts as more, nor the middle of n calls as n times as far above it.
MOST = 1.2
COLD = 1.05  # a call after others of another kind is slow: that it takes long says little
LEAST = 0.5  # a pause makes a call slow, but nothing makes it fast


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
        self._known = 0.0  # how well decode's cost is, from just before: 0 .. 1

    @property
    def draft(self) -> float:
        return self._common * self._draft.seconds

    def verify(self, num_tokens: int) -> float:
        return self._common * self._of(num_tokens).seconds

    def usual(self, num_tokens: int) -> float:
        """Of a verify, whatever the machine is busy with just now; 0 tokens: of a draft step."""
        return (self._of(num_tokens) if num_tokens else self._draft).seconds

    def rounds(self, lengths: Sequence[int]) -> list[float]:
        """Seconds of a round with each number of drafts, all verified."""
        common, draft_s = self._common, self._draft.seconds
        return [common * (length * draft_s + self._of(length + 1).seconds) for length in lengths]

    def observe_draft(self, seconds: float, cold: bool) -> None:
        """Cold: it follows plain rounds and finds the caches full of other weights."""
        self._follow(self._draft, seconds, 1, COLD if cold else MOST)

    def observe_verify(self, num_tokens: int, seconds: float, cold: bool) -> None:
        self._follow(self._of(num_tokens), seconds, 1, COLD if cold else MOST)

    def observe_decodes(self, seconds: Sequence[float]) -> None:
        """Several in a row: their middle counts, for as many as they are."""
        num_calls = len(seconds)
        most = 1 + num_calls * (MOST - 1)
        self._follow(self._of(1), sorted(seconds)[num_calls // 2], num_calls, most)

    def _of(self, num_tokens: int) -> "_Cost":
        return self._verify[min(num_tokens, len(self._verify) - 1)]

    def _follow(self, cost: "_Cost", seconds: float, num_calls: int, most: float) -> None:
        """Most of a change is taken to be common to all calls: a machine that is busy or hot."""
        change = min(max(seconds / (self._common * cost.seconds), LEAST), most) - 1
        cost.num_looks += 1
        own = max(OWN_RATE, 1 / cost.num_looks)
        common = num_calls * COMMON_RATE / (1 + num_calls * COMMON_RATE)
        decode = self._of(1)
        if cost is decode:
            self._common *= 1 + common * change
            self._known = common
        else:
            # Where the decodes before it are well known, their change was not as common.
            common += self._known * (own - common)
            moved = 1 + common * change
            self._common *= moved
            decode.seconds *= 1 + self._known * (1 / moved - 1)
            self._known /= 2
        cost.seconds *= 1 + (1 - common) * own * change


@dataclass(slots=True)
class _Cost:
    seconds: float  # but for what all costs have in common
    num_looks: float = NUM_MEASURED


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
