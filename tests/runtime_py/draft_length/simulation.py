"""The loop without a model: a trace says which drafts are right, a table what each call costs.

Regret is the true time of the policy over the true time of the best fixed draft length, plain
decoding included, minus one: the best in hindsight, on the same trace.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime_py.decoding.policy import DraftLength, Outcome, Round
from runtime_py.draft_length.costs import Known
from runtime_py.draft_length.policy import AutoDraftLength

LONGEST = 7
PRIOR = 0.75  # what the pool of E2B's .84 .70 .66 is: wrong for most of the traces
# The share of drafts accepted at each position, those before accepted; the last holds from there.
ACCEPTED = {
    "always wrong": (0.0,),
    "prose": (0.5,),
    "E2B": (0.84, 0.70, 0.66),  # .84, .59 and .39 of all rounds
    "code": (0.9,),
    "perfect": (1.0,),
}
CHANGES = (
    ("prose", "code", "prose"),
    ("E2B", "always wrong", "E2B"),
    ("code", "always wrong", "code"),
    ("perfect", "prose", "perfect"),
)
NUM_TOKENS = 600


@dataclass(frozen=True)
class CostTable:
    """What calls truly cost, in decodes."""

    draft: float
    verify: dict[int, float]  # by number of tokens
    widths: tuple[int, ...]  # those that the bundle has graphs for

    def call(self, num_tokens: int) -> float:
        """A graph costs what its width costs, however many of its tokens are padding."""
        width = next(width for width in self.widths if width >= num_tokens)
        return float(np.interp(width, list(self.verify), list(self.verify.values())))

    def known(self, rng: np.random.Generator, error: float = 0.0, prior: float = PRIOR) -> Known:
        """As a device measures itself at load: each call a few percent off."""
        width_s = {width: self.call(width) * _factor(rng, error) for width in self.widths}
        draft_s = self.draft * _factor(rng, error)
        round_s = [
            length * draft_s + next(width_s[width] for width in self.widths if width > length)
            for length in range(self.widths[-1])
        ]
        return Known(round_s=round_s, draft_s=draft_s, acceptance=prior)


POWERS, ALL = (1, 2, 4, 8), tuple(range(1, 9))


def table(draft: float, verify: Sequence[float], widths: tuple[int, ...]) -> CostTable:
    return CostTable(draft, dict(zip(POWERS, verify, strict=True)), widths)


# Ratios measured on the stack of E2B's widths and on the tiny model; and of a device that computes
# where most wait for memory: verifying 4 tokens costs 3.9 x one.
TABLES = {
    "LiteRT int8": table(0.25, (1, 1.04, 1.07, 1.31), POWERS),
    "LiteRT int4": table(0.27, (1, 1.15, 1.12, 1.32), POWERS),
    "ExecuTorch int8": table(0.35, (1, 1.38, 1.49, 2.22), ALL),
    "ExecuTorch int4": table(0.55, (1, 1.32, 1.52, 2.10), ALL),
    "ONNX int8": table(0.09, (1, 1.17, 1.55, 2.02), ALL),
    "slow device": table(0.20, (1, 2.0, 3.9, 7.7), POWERS),
    "tiny ONNX int8": table(0.39, (1, 1.10, 1.45, 2.14), ALL),
    "tiny model": table(0.70, (1, 1.19, 1.35, 1.64), POWERS),
}


def _factor(rng: np.random.Generator, error: float) -> float:
    return float(np.exp(rng.normal(0, error)))


def trace(rng: np.random.Generator, *segments: tuple[int, Sequence[float]]) -> np.ndarray:
    """[tokens, LONGEST]: would draft k after token t be right, had those before it been?

    Args:
        segments: number of tokens, and the share of right drafts by position; the last share
            holds for all later positions.
    """
    parts = []
    for num_tokens, shares in segments:
        by_position = [*shares, *[shares[-1]] * (LONGEST - len(shares))]
        parts.append(rng.random((num_tokens, LONGEST)) < np.array(by_position))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Noise:
    """Of the measured costs; what a simulation sums up are the true ones."""

    error: float = 0.05  # of every cost measured at load, for good
    jitter: float = 0.1  # of each call
    pauses: float = 0.01  # share of calls that take five times as long


QUIET = Noise(0, 0, 0)
BUSY = Noise(error=0.1, jitter=0.2, pauses=0.1)


def simulate(
    right: np.ndarray,
    costs: CostTable,
    policy: DraftLength,
    rng: np.random.Generator,
    noise: Noise = Noise(),
) -> np.ndarray:
    """[tokens] true cost of each token: its round's, divided evenly."""
    cost, token = np.zeros(len(right)), 0
    accepted = np.cumprod(right, axis=1)
    while token < len(right):
        # The first round of an answer has no hidden state to draft from.
        planned = policy.next_round() if token else Round(0)
        num_drafts = planned.num_drafts
        num_accepted = int(accepted[token, :num_drafts].sum())
        num_verified = 1 + num_drafts if planned.verified else 1
        draft_s, verify_s = num_drafts * costs.draft, costs.call(num_verified)
        policy.observe(
            Outcome(
                num_drafts,
                num_accepted,
                draft_s * _measured(rng, noise),
                verify_s * _measured(rng, noise),
                num_verified,
            )
        )
        end = token + 1 + (num_accepted if planned.verified else 0)
        cost[token:end] = (draft_s + verify_s) / (end - token)
        token = end
    return cost


def _measured(rng: np.random.Generator, noise: Noise) -> float:
    return _factor(rng, noise.jitter) * (5 if rng.random() < noise.pauses else 1)


def fixed_costs(right: np.ndarray, costs: CostTable) -> dict[int, np.ndarray]:
    """[tokens] cost of each token, by draft length, plain decoding's included: as `simulate`."""
    return {length: _fixed(right, costs, length) for length in range(costs.widths[-1])}


def _fixed(right: np.ndarray, costs: CostTable, length: int) -> np.ndarray:
    accepted = np.cumprod(right[:, :length], axis=1).sum(axis=1).tolist()
    round_cost = length * costs.draft + costs.call(length + 1)
    cost, token = np.full(len(right), costs.call(1)), 1
    while token < len(right):
        end = token + 1 + int(accepted[token])
        cost[token:end] = round_cost / (end - token)
        token = end
    return cost


MakePolicy = Callable[[CostTable, np.random.Generator, Noise], DraftLength]


def auto(costs: CostTable, rng: np.random.Generator, noise: Noise = Noise()) -> AutoDraftLength:
    return AutoDraftLength(costs.known(rng, noise.error))


def regrets(
    costs: CostTable,
    segments: Sequence[tuple[int, str]],
    num_seeds: int,
    noise: Noise = Noise(),
    make: MakePolicy = auto,
    tokens: slice = slice(None),
) -> Iterator[float]:
    """By seed, of some tokens of a text: lengths and kinds of its segments."""
    for seed in range(num_seeds):
        rng = np.random.default_rng(seed)
        right = trace(rng, *((num_tokens, ACCEPTED[kind]) for num_tokens, kind in segments))
        found = simulate(right, costs, make(costs, rng, noise), rng, noise)
        best = min(cost[tokens].sum() for cost in fixed_costs(right, costs).values())
        yield float(found[tokens].sum() / best - 1)


def steady(costs: CostTable, kind: str, num_seeds: int, make: MakePolicy = auto) -> float:
    """Mean regret over a text of one kind, what is lost by finding out included."""
    return float(np.mean([*regrets(costs, [(NUM_TOKENS, kind)], num_seeds, make=make)]))


def after_changes(
    costs: CostTable, kinds: Sequence[str], num_seeds: int, make: MakePolicy = auto
) -> float:
    """Mean regret from the 50th to the 200th token after a change, of the worst change."""
    segments, means = [(200, kind) for kind in kinds], []
    for change in range(200, 200 * len(kinds), 200):
        tokens = slice(change + 50, change + 200)
        means.append(np.mean([*regrets(costs, segments, num_seeds, make=make, tokens=tokens)]))
    return float(max(means))


def busy(costs: CostTable, kind: str, num_seeds: int, make: MakePolicy = auto) -> float:
    """Mean regret where one call in ten takes five times as long, and the others vary."""
    return float(np.mean([*regrets(costs, [(NUM_TOKENS, kind)], num_seeds, BUSY, make)]))


def worst_of_plain(costs: CostTable, num_seeds: int, make: MakePolicy = auto) -> float:
    """Plain decoding's time over the policy's with a drafter that is always wrong: worst seed."""
    segments = [(NUM_TOKENS, "always wrong")]
    return 1 / (1 + max(regrets(costs, segments, num_seeds, make=make)))
