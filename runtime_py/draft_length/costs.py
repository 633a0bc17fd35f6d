"""Seconds per call, as they are now: what draft_length.py decides by.

Only sums, products, quotients, square roots and comparisons, in an order that is written out, as
there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# How fast what is common to all costs follows one decode, and one round with drafts.
DECODE_RATE, ROUND_RATE = 0.3, 0.7
NUM_MEASURED = 5.0  # looks that a cost measured at load stands for
MOST_LOOKS = 67.0  # that any cost stands for: what changes is never quite certain
FADED, LEAST_LOOKS = 0.85, 0.25  # what looks are worth after a use without one, and at least
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
            finds the caches full of other weights. Followed, too.
    """

    def __init__(
        self,
        draft: float,
        verify: Mapping[int, float],
        looks: Mapping[int, float] | None = None,
        first: float = 0.0,
    ) -> None:
        looks = looks or {}
        num_looks = looks.get(0, NUM_MEASURED)
        self._first = _Cost((1 + first) * draft, num_looks)
        self._later = _Cost(draft, num_looks)
        self._verify: list[_Cost] = []  # by number of tokens
        for width in sorted(verify):
            cost = _Cost(verify[width], looks.get(width, NUM_MEASURED))
            self._verify += [cost] * (width + 1 - len(self._verify))
        self._common = 1.0
        self._known = 0.0  # how well decode's cost is, from just before: 0 .. 1

    @property
    def first(self) -> float:
        """Draft steps that the first of a round takes more, as it is now."""
        return self._first.seconds / self._later.seconds - 1

    def drafts(self, num_drafts: int) -> float:
        """All draft steps of a round, at least one."""
        return self._common * (self._first.seconds + (num_drafts - 1) * self._later.seconds)

    def verify(self, num_tokens: int) -> float:
        return self._common * self._of(num_tokens).seconds

    def usual(self, width: int) -> tuple[float, float]:
        """Seconds whatever the machine is busy with just now, and looks that this is worth in the
        next use; of a draft step by 0.

        What was not looked at counts for less: what was measured too dear would never be tried
        again else, in no use.
        """
        cost = self._of(width) if width else self._later
        faded = max(FADED * cost.num_looks, LEAST_LOOKS)
        return cost.seconds, cost.num_looks if cost.seen else faded

    def rounds(self, lengths: Sequence[int]) -> list[tuple[float, float]]:
        """Seconds of a round with each number of drafts, all verified; and what it may be at best,
        of calls that were seldom looked at."""
        first_at_best, later_at_best = 1 - self._first.doubt, 1 - self._later.doubt
        found = []
        for length in lengths:
            drafts_s, verify_s = self.drafts(length), self.verify(length + 1)
            drafts_at_best = later_at_best if length > 1 else first_at_best
            verify_at_best = 1 - self._of(length + 1).doubt
            least_s = drafts_s * drafts_at_best + verify_s * verify_at_best
            found.append((drafts_s + verify_s, least_s))
        return found

    def observe_decodes(self, seconds: Sequence[float]) -> None:
        """Of several the middle counts, for as many as they are, as always.

        Most of a change is taken to be common to all calls: a machine that is busy or hot.
        """
        change = _change(seconds, self.verify(1), MOST)
        self._known = _rate(DECODE_RATE, len(seconds))
        self._move([(self._of(1), change)], self._known * change, len(seconds))

    def observe_rounds(
        self,
        num_drafts: int,
        drafts_s: Sequence[float],
        num_tokens: int,
        verify_s: Sequence[float],
        cold: bool = False,
    ) -> None:
        """So many drafts, at least one, and then so many tokens in one call.

        Common is what both show: drafts that took longer than at load would make all that is not
        looked at seem dearer else. One draft says nothing about later ones.

        Cold: they follow plain rounds and find the caches full of other weights.
        """
        num_rounds, most = len(verify_s), COLD if cold else MOST
        of_drafts = _change(drafts_s, self.drafts(num_drafts), most)
        of_verify = _change(verify_s, self.verify(num_tokens), most)
        less, more = min(of_drafts, of_verify), max(of_drafts, of_verify)
        in_both = max(less, 0.0) + min(more, 0.0)
        decode, verified = self._of(1), self._of(num_tokens)
        rate = _rate(ROUND_RATE, num_rounds)
        # Where the decodes just before are well known, what changes is not as common.
        rate += self._known * (verified.own_rate(num_rounds) - rate)
        common = rate * in_both
        decode.seconds *= 1 + self._known * (1 / (1 + common) - 1)
        self._known = 0.0
        changes = [(verified, of_verify), (self._first, of_drafts)]
        if num_drafts > 1:
            changes.append((self._later, of_drafts))
        self._move(changes, common, num_rounds)

    def _of(self, num_tokens: int) -> "_Cost":
        return self._verify[min(num_tokens, len(self._verify) - 1)]

    def _move(
        self, changes: Sequence[tuple["_Cost", float]], common: float, num_calls: int
    ) -> None:
        """What a change is beyond the common one is the cost's own."""
        self._common *= 1 + common
        for cost, change in changes:
            cost.seconds *= 1 + cost.own_rate(num_calls) * ((1 + change) / (1 + common) - 1)
            cost.num_looks, cost.seen = min(cost.num_looks + num_calls, MOST_LOOKS), True


@dataclass(slots=True)
class _Cost:
    seconds: float  # but for what all costs have in common
    num_looks: float
    seen: bool = False  # since load

    @property
    def doubt(self) -> float:
        """The share that it may be too high by."""
        return DOUBT / math.sqrt(self.num_looks)

    def own_rate(self, num_calls: int) -> float:
        """How far it follows their middle: to the mean of all that were looked at."""
        return num_calls / (self.num_looks + num_calls)


def _rate(of_one: float, num_calls: int) -> float:
    """What so many calls move an estimate by."""
    return num_calls * of_one / (1 + num_calls * of_one)


def _change(seconds: Sequence[float], expected_s: float, most: float) -> float:
    """Of the middle, beyond what was expected: a share of it, or less than nothing."""
    middle = sorted(seconds)[len(seconds) // 2]
    return min(max(middle / expected_s, LEAST), 1 + len(seconds) * (most - 1)) - 1
