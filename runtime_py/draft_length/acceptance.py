"""The share of drafts that are accepted at each position, as the text is now.

Acceptance changes with the text, so an outcome counts less with every token after it. Positions
that were seldom tried are taken to be like all positions together, and those like a prior.
"""

MEMORY = 40.0  # tokens: short enough for a change of text, long enough to average over luck
POOLED = 2.0  # tries that all positions together count for at each, and the prior in those


class Acceptance:
    """Estimates a_k, the share of drafts accepted at position k where all before it were."""

    def __init__(self, num_positions: int, prior: float) -> None:
        self._prior = prior
        self.shares = [prior] * num_positions  # a_1, a_2, ...
        self._hits, self._tries = [0.0] * num_positions, [0.0] * num_positions
        self._all_hits = self._all_tries = 0  # nothing forgotten

    @property
    def next_prior(self) -> float:
        """What the next use may expect: the share of all drafts of this one."""
        return (POOLED * self._prior + self._all_hits) / (POOLED + self._all_tries)

    def observe(self, num_drafted: int, num_accepted: int, num_tokens: int) -> None:
        """Learn from one round; num_tokens were emitted since the one observed before."""
        keep = MEMORY / (MEMORY + num_tokens)
        num_tries = min(num_drafted, num_accepted + 1)
        self._all_hits += num_accepted
        self._all_tries += num_tries
        pool_hits, pool_tries = POOLED * self._prior, POOLED
        for k in range(len(self.shares)):
            self._hits[k] = keep * self._hits[k] + (k < num_accepted)
            self._tries[k] = keep * self._tries[k] + (k < num_tries)
            pool_hits += self._hits[k]
            pool_tries += self._tries[k]
        pooled = POOLED * (pool_hits / pool_tries)
        for k in range(len(self.shares)):
            self.shares[k] = (self._hits[k] + pooled) / (self._tries[k] + POOLED)
