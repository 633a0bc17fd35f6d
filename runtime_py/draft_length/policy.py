"""How many tokens to draft in the next round: the number that pays best by measured cost.

A round of draft length K costs T(K) seconds and emits E(K) = 1 + a_1 + a_1 a_2 + ... + a_1 ... a_K
tokens, where a_k is the share of drafts accepted at position k. The policy takes the K of the
largest E(K) / T(K), and decodes plainly unless that beats plain decoding by MARGIN.

Two things would go unseen. While decoding plainly, whether drafts hit: now and then one token is
drafted and compared with what decode chooses, which costs one draft step. While drafting, what
decode costs: now and then some rounds are plain. The first round of another kind finds the
processor's caches full of other weights, so its time does not count.

All is sums, products, quotients and comparisons in a written-out order: a port takes the same
decisions. E(K): Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding".
"""

import math
from pathlib import Path

from runtime_py.decoding.policy import Outcome, Round
from runtime_py.draft_length.acceptance import Acceptance
from runtime_py.draft_length.costs import NUM_OWN, Costs, Known

MARGIN = 1.01  # times plain decoding: a smaller gain is within the error of the estimates
PROBES = 0.01  # share of the time that compared drafts may take
CREDIT = 12.0  # of them that may come early, each after a hit: then the text has changed
REFRESH = 10.0  # rounds with drafts per sample of decode so far, until plain ones measure it
BATCH = 16  # plain rounds learnt from together: learning from one alone takes 2 % of a short one

_PLAIN, _COMPARE = Round(0), Round(1, verified=False)


class AutoDraftLength:
    """Chooses by the module's rule, beginning with what is known; path: where that is kept."""

    def __init__(self, known: Known, path: Path | None = None) -> None:
        self.path = path
        self.costs = Costs(known)
        self.acceptance = Acceptance(len(known.round_s) - 1, known.acceptance)
        self._known = known
        self._rounds = [Round(length) for length in range(len(known.round_s))]
        self._price = known.draft_s / (PROBES * known.round_s[0])  # of a probe, in plain rounds
        self._wait = 0.0  # plain rounds until a probe is paid for
        self._hit = False  # the last round was a probe, and right
        self._plain_s: list[float] = []  # plain rounds not yet learnt from
        self._num_unseen = 0  # tokens since drafts were last observed
        self._num_drafting = 0  # rounds with drafts in a row
        self._next, self._num_plain = _PLAIN, 1  # at first there is nothing to draft from

    def to_remember(self) -> Known:
        learnt = {"round_s": self.costs.round_s, "acceptance": self.acceptance.next_prior}
        return self._known.model_copy(update=learnt)

    def next_round(self) -> Round:
        return _PLAIN if self._num_plain > 0 else self._next

    def observe(self, outcome: Outcome) -> None:
        if not outcome.num_drafted:
            self._plain_s.append(outcome.verify_s)
            self._num_plain -= 1
            if self._num_plain > 0 and len(self._plain_s) < BATCH:
                return
        self._learn_plain()
        if outcome.num_drafted:
            self._learn_drafts(outcome)
        self._plan()

    def _learn_plain(self) -> None:
        num_rounds, cold = len(self._plain_s), int(self._num_drafting > 0)
        warm = self._plain_s[cold:] if cold else sorted(self._plain_s)[num_rounds // 2 :][:1]
        for seconds in warm:
            self.costs.observe(0, seconds)
        if num_rounds:
            self._num_unseen += num_rounds
            self._wait = max(self._wait - num_rounds, 0.0)
            self._plain_s, self._num_drafting, self._hit = [], 0, False

    def _learn_drafts(self, outcome: Outcome) -> None:
        drafted, accepted, draft_s, verify_s, num_verified = outcome
        compared = num_verified == 1
        num_tokens = self._num_unseen + (1 if compared else 1 + accepted)
        self.acceptance.observe(drafted, accepted, num_tokens)
        self._num_unseen, self._hit = 0, compared and accepted > 0
        if compared:
            self._num_drafting, self._wait = 0, self._wait + self._price
            return
        if self._num_drafting:
            self.costs.observe(drafted, draft_s + verify_s)
        self._num_drafting += 1

    def _plan(self) -> None:
        best, may_pay = self._best()
        if best:
            self._next, self._wait = self._rounds[best], self._price
            due = self._num_drafting >= REFRESH * self.costs.num_samples[0]
            self._num_plain = 1 + NUM_OWN if due else 0
        elif may_pay:
            early = self._hit and self._wait <= CREDIT * self._price
            self._next, self._num_plain = _COMPARE, 0 if early else math.ceil(self._wait)
        else:
            self._next, self._num_plain = _PLAIN, BATCH

    def _best(self) -> tuple[int, bool]:
        """The length that pays best, 0 if none does; and whether perfect drafts would pay."""
        best, speed, may_pay = 0, MARGIN, False
        tokens = all_before = 1.0
        plain_s = self.costs[0]
        for length, share in enumerate(self.acceptance.shares, start=1):
            all_before *= share
            tokens += all_before
            plain_rounds = self.costs[length] / plain_s
            may_pay = may_pay or length + 1 > MARGIN * plain_rounds
            if tokens > speed * plain_rounds:
                best, speed = length, tokens / plain_rounds
        return best, may_pay
