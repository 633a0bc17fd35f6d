"""How many tokens to draft in the next round: the number that pays best by measured cost.

A round with draft length K costs T(K) = K * draft + verify(K + 1) seconds and emits

    E(K) = 1 + a_1 + a_1 a_2 + ... + a_1 ... a_K

tokens, where a_k is the share of drafts at position k that are accepted, those before them having
been. The best K maximises E(K) / T(K); E(0) / T(0) is plain decoding, so that the loop is never
slower than that for longer than it takes to find out.

Costs are measured when the bundle is loaded and followed from call to call: what all calls have in
common (a processor that gets hot) and each call's own, the faster the fewer times it was seen. Now
and then a decode keeps the yardstick right: the sooner, the less better than that drafting seems.
Whether to draft goes by these costs; all else by what they may be at best, where they were seldom
looked at: what was measured too dear would never be tried again else.

Acceptance changes with the text: acceptance.py estimates a_1, a_2, ... from what became of drafts.
Where rounds are short, the outcomes of THOUGHT_S are learnt from together, but for the first few,
at first and after a probe, and sooner after MISSES; and plain rounds are looked at together.
Thinking takes 0.1 to 0.2 ms here, what the calls after it take longer included; and a round of the
tiny model takes 0.2 to 3 ms.

At K = 0 nothing would be learnt. Now and then a round is a probe: one token is drafted and compared
with what decode chooses (cost: one draft step), or drafts are verified, where that is expected to
lose less against plain decoding: near the break-even point next to nothing. Probes may lose
MOST_PROBES of the time, and a share of what drafts gained lately, this time and the last times:
where they gain in some stretches of text, those have to be found. They may lose less where there is
little to gain, or where the drafter was seldom right. What counts as lost is what was expected, by
costs as they are known, and what took longer; of wrong drafts beyond that a quarter, or one such
round near the break-even point would keep probes away for a hundred. After a probe that hits all,
another may follow at once, on credit. There are none where not even a drafter that is always right
could pay.

Only sums, products, quotients, roots and comparisons, in an order that is written out: a port with
the same double arithmetic takes the same decisions from the same outcomes.

Sources: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", section
3.1, for E(K); Auer et al. 2002, "Finite-time Analysis of the Multiarmed Bandit Problem", for costs
at best.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime_py.decoding.policy import Outcome, Round
from runtime_py.draft_length.acceptance import PRIOR_LASTS, Acceptance
from runtime_py.draft_length.costs import Costs

LEAST_PROBES, MOST_PROBES = 0.001, 0.01  # share of the time
REINVESTED, MOST_REINVESTING = 0.3, 0.04  # of what drafts gained; share of the time, with the above
GAIN_LASTS = 1024.0  # decode calls that a gain known beforehand counts for
HOPE_SHARE = 0.05  # of what a drafter that is always right would gain, if that is less
LUCK = 0.25  # of what a probe loses by wrong drafts beyond what was expected, for that evens out
OVERRUN = 2.0  # draft steps that a probe may take longer: no more of it counts as lost
LIKELY = 0.5  # share of drafts accepted so far: the further below it, the less probes may lose
PURSE = 4.0  # draft steps for which may be saved up
CREDIT = 4.0  # decode calls that probes may lose before their time, while they hit
WORTH_DRAFTING = 1.02  # times plain decoding: switching costs, too, and estimates are estimates
WORTH_PROBING = 1.02  # times plain decoding, by a drafter that is always right
REFRESH = 2  # decodes in a row; the first is slow, for it finds the caches full of other weights
MOST_REFRESH, LEAST_REFRESH = 100.0, 8.0  # rounds with drafts in a row
REFRESH_COST = 0.01  # share of the time that the decodes between them may cost
LOOK, LOOK_S = 32, 0.04  # plain rounds in a row, or seconds of them, looked at together: the more
THOUGHT_S = 0.02  # seconds of rounds with drafts that are learnt from together
MISSES = 3  # or rounds of which no draft was accepted
EAGER = 4  # rounds with drafts, the first ones and after a probe, that are learnt from one by one

_PLAIN = Round(0)
_COMPARE = Round(1, verified=False)


@dataclass(slots=True)
class _Prospect:
    """What the present estimates promise."""

    best: Round
    probe: Round  # the one that is expected to lose least
    least_loss_s: float  # its, against plain decoding, by costs at best
    expected_loss_s: float  # the same by costs as they are known, which is what counts as lost
    most: float  # tokens per second of a drafter that is always right, plain decoding's being 1
    refresh: float  # rounds with drafts until a decode is worth its time


class AutoDraftLength:
    """Chooses among `lengths` by the module's rule.

    Args:
        costs: measured on this device; followed from here on.
        lengths: what the bundle's graphs can verify; 0 may be left out, it is always one.
        prior: the share of drafts that are accepted, as far as is known beforehand.
        gain: the time that drafts saved, as a share of the time taken, as far as is known.
    """

    def __init__(
        self, costs: Costs, lengths: Sequence[int], prior: float = 0.7, gain: float = 0.0
    ) -> None:
        self.costs = costs
        self._lengths = sorted(set(lengths) - {0})
        longest = max(lengths, default=0)
        self._rounds = [Round(num_drafts) for num_drafts in range(longest + 1)]
        self._prior = prior
        self._acceptance = Acceptance(longest, prior)
        self._tokens = _expected_tokens(self._lengths, self._acceptance.by_position)
        self._gain = gain
        self._gained_s = self._spent_s = 0.0  # against plain decoding; by all rounds
        self._purse_s = 0.0  # what probes may lose
        self._credit_s = 0.0
        self._probing = False  # what was decided last is a probe
        self._cold = False  # the next round with drafts to learn from follows plain ones
        self._gathered: list[Outcome] = []  # rounds with drafts to learn from
        self._gathered_s = 0.0  # what they took
        self._num_missed = 0  # of them, those of which no draft was accepted
        self._decodes_s: list[float] = []  # plain rounds to look at
        self._num_learnt = 0  # such rounds so far, since the last probe
        self._num_unseen = 0  # tokens since acceptance was observed
        self._num_drafting = 0  # rounds with drafts in a row
        self._look_anew()
        self._num_to_look = 1.0  # the first round is plain, for there is nothing to draft from

    @property
    def acceptance(self) -> list[float]:
        """The present estimate, by position."""
        return self._acceptance.by_position

    def next_prior(self) -> float:
        """The share of drafts that are accepted, as far as it is known after all this."""
        seen = self._acceptance
        return (PRIOR_LASTS * self._prior + seen.num_hits) / (PRIOR_LASTS + seen.num_tries)

    def next_gain(self) -> float:
        """What drafts saved of the time, at least 0, as far as it is known after all this."""
        lasts_s = GAIN_LASTS * self.costs.verify(1)
        return max((lasts_s * self._gain + self._gained_s) / (lasts_s + self._spent_s), 0.0)

    def next_round(self) -> Round:
        self._probing = False
        prospect = self._prospect
        if prospect.best.num_drafts:
            refreshing = self._decodes_s or self._num_drafting >= prospect.refresh
            return _PLAIN if refreshing else prospect.best
        if len(self._decodes_s) < self._num_to_probe:
            return _PLAIN
        self._probing = True
        return prospect.probe

    def observe(self, outcome: Outcome) -> None:
        if not outcome.num_drafted:
            self._decodes_s.append(outcome.verify_s)
            if len(self._decodes_s) >= self._num_to_look:
                self.take_in()
            return
        self._look_at_decodes()
        self._num_drafting += 1
        self._gathered.append(outcome)
        self._gathered_s += outcome.draft_s + outcome.verify_s
        self._num_missed += not outcome.num_accepted
        eager = self._probing or self._num_learnt < EAGER or self._num_missed >= MISSES
        if eager or self._gathered_s >= THOUGHT_S:
            self._learn()

    def take_in(self) -> None:
        """All rounds that are still put aside."""
        self._look_at_decodes()
        if self._gathered:
            self._learn()
        else:
            self._look_anew()

    def _look_at_decodes(self) -> None:
        """Plain rounds are put aside until then, so that they are not slowed down."""
        if self._decodes_s:
            warm_s = self._decodes_s[1:] if self._num_drafting else self._decodes_s
            self.costs.observe_decodes(warm_s or self._decodes_s)
            spent_s = 0.0
            for seconds in self._decodes_s:  # sum() rounds less from Python 3.12 on
                spent_s += seconds
            self._earn(spent_s, 0.0)
            self._num_unseen += len(self._decodes_s)
            self._num_drafting, self._credit_s, self._decodes_s = 0, 0.0, []
            self._cold = True

    def _learn(self) -> None:
        """From the rounds with drafts that were put aside; a probe is one alone."""
        self._follow_costs()
        num_tokens = len(self._gathered)
        for outcome in self._gathered:
            if outcome.num_verified > 1:
                num_tokens += outcome.num_accepted
        self._acceptance.observe(self._gathered, self._num_unseen + num_tokens)
        self._tokens = _expected_tokens(self._lengths, self._acceptance.by_position)
        lost_s = self._credit_s = 0.0
        plain_s = self.costs.verify(1)
        self._gained_s += num_tokens * plain_s - self._gathered_s
        if self._probing:
            last = self._gathered[-1]
            usual_s, expected_s = self._seconds(last), self._prospect.expected_loss_s
            over_s = min(self._gathered_s - usual_s, OVERRUN * self.costs.drafts(1))
            lost_s = expected_s + LUCK * (usual_s - num_tokens * plain_s - expected_s) + over_s
            if last.num_accepted == last.num_drafted:
                self._credit_s = CREDIT * plain_s
        self._earn(self._gathered_s, lost_s)
        self._num_learnt = 0 if self._probing else self._num_learnt + len(self._gathered)
        self._gathered, self._gathered_s, self._num_unseen = [], 0.0, 0
        self._num_missed = 0
        self._look_anew()

    def _follow_costs(self) -> None:
        """Of the rounds that were put aside those count that are like the last, as nearly all are.

        The first one after plain rounds does not, unless it is the only one.
        """
        last = self._gathered[-1]
        alike = [
            outcome
            for outcome in self._gathered
            if outcome.num_drafted == last.num_drafted and outcome.num_verified == last.num_verified
        ]
        alone = len(alike) == 1
        if self._cold and not alone:
            del alike[0]
        cold = self._cold and alone
        self._cold = False
        drafts_s = [outcome.draft_s for outcome in alike]
        verify_s = [outcome.verify_s for outcome in alike]
        self.costs.observe_rounds(last.num_drafted, drafts_s, last.num_verified, verify_s, cold)

    def _look_anew(self) -> None:
        self._prospect = self._look_ahead()
        decode_s = self.costs.verify(1)
        # Plain rounds until they are looked at, or until a probe, which comes with a look at them.
        self._num_to_look = max(LOOK, LOOK_S / decode_s)
        self._num_to_probe = math.inf
        if self._prospect.best.num_drafts:
            self._num_to_look = REFRESH
        elif self._prospect.most >= WORTH_PROBING:
            missing_s = self._prospect.least_loss_s - self._purse_s
            earned_s = self._probe_share() * decode_s  # by each
            self._num_to_probe = 0.0 if missing_s <= self._credit_s else missing_s / earned_s

    def _probe_share(self) -> float:
        """Less where there is little to gain, or the drafter was seldom right so far."""
        hoped = min(HOPE_SHARE * (self._prospect.most - 1), MOST_PROBES)
        hoped = min(hoped + REINVESTED * self.next_gain(), MOST_REINVESTING)
        return max(hoped * min(self.next_prior() / LIKELY, 1.0), LEAST_PROBES)

    def _earn(self, spent_s: float, lost_s: float) -> None:
        self._spent_s += spent_s
        earned_s = self._probe_share() * spent_s
        self._purse_s = min(self._purse_s + earned_s - lost_s, PURSE * self.costs.drafts(1))

    def _seconds(self, outcome: Outcome) -> float:
        """What such a round costs."""
        return self.costs.drafts(outcome.num_drafted) + self.costs.verify(outcome.num_verified)

    def _look_ahead(self) -> _Prospect:
        plain_s = self.costs.verify(1)
        best, probe, speed, hope, most = 0, _COMPARE, WORTH_DRAFTING, 0.0, 1.0
        least_loss_s = expected_loss_s = self.costs.drafts(1)
        costs = self.costs.rounds(self._lengths)
        for length, tokens, (round_s, least_s) in zip(
            self._lengths, self._tokens, costs, strict=True
        ):
            plainly_s = tokens * plain_s
            speed = max(speed, plainly_s / round_s)
            if plainly_s > hope * least_s:
                best, hope = length, plainly_s / least_s
            if least_s - plainly_s < least_loss_s:
                probe, least_loss_s = self._rounds[length], max(least_s - plainly_s, 0.0)
                expected_loss_s = max(round_s - plainly_s, 0.0)
            most = max(most, (length + 1) * plain_s / least_s)
        refresh = min(max(REFRESH * (speed - 1) / REFRESH_COST, LEAST_REFRESH), MOST_REFRESH)
        best_round = self._rounds[best if speed > WORTH_DRAFTING else 0]
        return _Prospect(best_round, probe, least_loss_s, expected_loss_s, most, refresh)


def _expected_tokens(lengths: Sequence[int], acceptance: Sequence[float]) -> list[float]:
    """E(K) of each length."""
    tokens = all_before = 1.0
    expected = []
    for length, share in enumerate(acceptance, start=1):
        all_before *= share
        tokens += all_before
        if length in lengths:
            expected.append(tokens)
    return expected
