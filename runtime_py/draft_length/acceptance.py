"""The share of drafts that are accepted, as it is now.

Acceptance changes with the text. Each supposed beginning of the present stretch of text has its own
counts of hits and tries by position, and a weight: the probability, given all outcomes, that the
text changed there and not since. Per emitted token the text changes with probability HAZARD, so
that before each outcome a share of all weight goes to a stretch that begins now; then every
stretch's weight is multiplied by the probability that it gave the outcome. The estimate is the mean
over the stretches; the lightest is dropped when there are too many. Within a stretch, position k
was a_k = (hits_k + POOLING * pool) / (tries_k + POOLING), where the pool is the same over all
positions and falls back on a prior: positions not tried yet are taken to be like those that were.

Only sums, products, quotients and comparisons, in an order that is written out, as in
draft_length.py.

Source: Adams and MacKay 2007, "Bayesian Online Changepoint Detection".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime_py.decoding.policy import Outcome

HAZARD = 0.004  # probability that the text changes, per emitted token
MAX_STRETCHES = 6
LEAST_HOPE, MOST_HOPE = 0.1, 0.98  # a prior of 0 or 1 would have nothing to learn
PRIOR_TRIES = 4.0  # what the prior counts for
PRIOR_LASTS = 20.0  # tries that it counts for when the next one is made
POOLING = 10.0  # tries for which all positions together count at each


class Acceptance:
    """The share of drafts that are accepted, by position, as it is now.

    Args:
        num_positions: the longest draft.
        prior: the share at any position, as far as is known beforehand.
    """

    def __init__(self, num_positions: int, prior: float) -> None:
        self._num_positions = num_positions
        self._prior = min(max(prior, LEAST_HOPE), MOST_HOPE)
        self._stretches = [self._begin(1.0)]
        self.num_hits = self.num_tries = 0  # of all drafts
        self.by_position = self._mean()  # a_1, a_2, ...: strictly between 0 and 1

    def observe(self, rounds: Sequence[Outcome], num_tokens: int) -> None:
        """Position k was tried if all before it were accepted.

        Args:
            rounds: of which the drafted and the accepted tokens count.
            num_tokens: emitted since the last time.
        """
        if len(self._stretches) == MAX_STRETCHES:
            del self._stretches[self._lightest()]
        changed = HAZARD * num_tokens / (1 + HAZARD * num_tokens)
        for stretch in self._stretches:
            stretch.weight *= 1 - changed
        self._stretches.append(self._begin(changed))
        hits, misses = self._count(rounds)
        total = 0.0
        for stretch in self._stretches:
            stretch.observe(hits, misses)
            total += stretch.weight
        for stretch in self._stretches:
            stretch.weight /= total
        self.by_position = self._mean()

    def _count(self, rounds: Sequence[Outcome]) -> tuple[list[int], list[int]]:
        """Hits and misses by position, up to the last that was tried."""
        hits, misses = [0] * self._num_positions, [0] * self._num_positions
        last = 0
        for outcome in rounds:
            num_hits = num_tries = min(outcome.num_accepted, self._num_positions)
            for position in range(num_hits):
                hits[position] += 1
            if num_hits < min(outcome.num_drafted, self._num_positions):
                misses[num_hits] += 1
                num_tries += 1
            last = max(last, num_tries)
            self.num_hits += num_hits
            self.num_tries += num_tries
        return hits[:last], misses[:last]

    def _begin(self, weight: float) -> "_Stretch":
        num, prior = self._num_positions, self._prior
        return _Stretch(weight, [0.0] * num, [0.0] * num, [prior] * num, prior)

    def _lightest(self) -> int:
        """But not the last: it has had one outcome to prove itself."""
        weights = [stretch.weight for stretch in self._stretches[:-1]]
        return weights.index(min(weights))

    def _mean(self) -> list[float]:
        means = [0.0] * self._num_positions
        for stretch in self._stretches:
            weight = stretch.weight
            for position, share in enumerate(stretch.shares):
                means[position] += weight * share
        return means


@dataclass(slots=True)
class _Stretch:
    """Text since a supposed change: what was tried there, and how likely the supposition is."""

    weight: float
    hits: list[float]
    tries: list[float]
    shares: list[float]  # what follows from hits and tries
    prior: float

    def observe(self, hits: Sequence[int], misses: Sequence[int]) -> None:
        weight = self.weight
        for position, (num_hits, num_misses) in enumerate(zip(hits, misses, strict=True)):
            share = self.shares[position]
            for _ in range(num_hits):
                weight *= share
            for _ in range(num_misses):
                weight *= 1 - share
            self.hits[position] += num_hits
            self.tries[position] += num_hits + num_misses
        self.weight = weight
        all_hits, all_tries = PRIOR_TRIES * self.prior, PRIOR_TRIES
        for hit, tried in zip(self.hits, self.tries, strict=True):
            all_hits += hit
            all_tries += tried
        pooled = POOLING * (all_hits / all_tries)
        self.shares = [
            (hit + pooled) / (tried + POOLING)
            for hit, tried in zip(self.hits, self.tries, strict=True)
        ]
