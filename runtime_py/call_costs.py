"""Seconds per call, as they are now: what draft_length.py decides by.

Only sums, products, quotients, square roots and comparisons, in an order that is written out, as
there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COMMON_RATE, OWN_RATE = 0.3, 0.015  # how fast costs follow what was measured
NUM_MEASURED = 5.0  # looks that a cost measured at load stands for
# Times its cost: no call counts as more, nor the middle of n calls as n times as far above it.
MOST = 1.2
COLD = 1.05  # a call after others of another kind is slow: that it takes long says little
LEAST = 0.5  # a pause makes a call slow, but nothing makes it fast
DOUBT = 0.2  # of a cost that was looked at once: it may be so much lower; by the root of looks


class Costs:
    """Seconds per call, as they are now.

    Args:
        draft: one draft step, as measured.
        verify: a target call, by the width of its graph, of which the least is 1, which is decode:
            tokens between two widths cost what the wider one does, padded.
        looks: how many each of these stands for, by width, and of a draft step by 0; NUM_MEASURED
            where nothing is said.
        first: draft steps that the first of a round takes more, for it follows a target call and
            finds the caches full of other weights.
    """

    def __init__(
        self,
        draft: float,
        verify: Mapping[int, float],
        looks: Mapping[int, float] | None = None,
        first: float = 0.0,
    ) -> None:
        looks = looks or {}
        self._first = first
        self._draft = _Cost(draft, looks.get(0, NUM_MEASURED))
        self._verify: list[_Cost] = []  # by number of tokens
        for width in sorted(verify):
            cost = _Cost(verify[width], looks.get(width, NUM_MEASURED))
            self._verify += [cost] * (width + 1 - len(self._verify))
        self._common = 1.0
        self._known = 0.0  # how well decode's cost is, from just before: 0 .. 1

    def drafts(self, num_drafts: int) -> float:
        """All draft steps of a round, at least one."""
        return self._common * ((num_drafts + self._first) * self._draft.seconds)

    def verify(self, num_tokens: int) -> float:
        return self._common * self._of(num_tokens).seconds

    def usual(self, width: int) -> tuple[float, float]:
        """Seconds whatever the machine is busy with just now, and looks; of a draft step by 0."""
        cost = self._of(width) if width else self._draft
        return cost.seconds, cost.num_looks

    def rounds(self, lengths: Sequence[int]) -> list[tuple[float, float]]:
        """Seconds of a round with each number of drafts, all verified; and what it may be at best,
        of calls that were seldom looked at."""
        step_at_best = 1 - self._draft.doubt
        found = []
        for length in lengths:
            drafts_s, verify_s = self.drafts(length), self.verify(length + 1)
            verify_at_best = 1 - self._of(length + 1).doubt
            found.append((drafts_s + verify_s, drafts_s * step_at_best + verify_s * verify_at_best))
        return found

    def observe_drafts(self, num_drafts: int, seconds: Sequence[float], cold: bool = False) -> None:
        """Rounds of so many; of several the middle counts, for as many as they are, as always.

        Cold: they follow plain rounds and find the caches full of other weights.
        """
        num_steps = num_drafts + self._first
        self._follow(
            self._draft, [drafts_s / num_steps for drafts_s in seconds], COLD if cold else MOST
        )

    def observe_verify(self, num_tokens: int, seconds: Sequence[float], cold: bool = False) -> None:
        """One token is decode."""
        self._follow(self._of(num_tokens), seconds, COLD if cold else MOST)

    def _of(self, num_tokens: int) -> "_Cost":
        return self._verify[min(num_tokens, len(self._verify) - 1)]

    def _follow(self, cost: "_Cost", seconds: Sequence[float], most: float) -> None:
        """Most of a change is taken to be common to all calls: a machine that is busy or hot."""
        num_calls = len(seconds)
        middle = sorted(seconds)[num_calls // 2]
        most = 1 + num_calls * (most - 1)
        change = min(max(middle / (self._common * cost.seconds), LEAST), most) - 1
        cost.num_looks += num_calls
        own = max(_of_all(num_calls, OWN_RATE), num_calls / cost.num_looks)
        common = _of_all(num_calls, COMMON_RATE)
        decode = self._of(1)
        if cost is not decode:
            # Where the decodes before it are well known, their change was not as common.
            common += self._known * (own - common)
        moved = 1 + common * change
        self._common *= moved
        if cost is decode:
            self._known = common
        else:
            decode.seconds *= 1 + self._known * (1 / moved - 1)
            self._known /= 2
        cost.seconds *= 1 + own * ((1 + change) / moved - 1)


@dataclass(slots=True)
class _Cost:
    seconds: float  # but for what all costs have in common
    num_looks: float

    @property
    def doubt(self) -> float:
        """The share that it may be too high by; what changes is never quite certain."""
        return DOUBT / math.sqrt(min(self.num_looks, 1 / OWN_RATE))


def _of_all(num_calls: int, rate: float) -> float:
    """What one call moves an estimate by, of several."""
    return num_calls * rate / (1 + num_calls * rate)
