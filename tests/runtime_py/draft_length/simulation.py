"""The loop without a model: a trace says which drafts are right, a table what each call costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime_py.decoding.policy import DraftLength, Outcome, Round
from runtime_py.draft_length.costs import Costs
from runtime_py.draft_length.policy import AutoDraftLength

LONGEST = 7
PRIOR = 0.75  # what the pool of E2B's .84 .70 .66 is: wrong for most of the traces


@dataclass(frozen=True)
class CostTable:
    """What calls truly cost, in seconds or in decodes."""

    draft: float
    verify: dict[int, float]  # by number of tokens
    widths: tuple[int, ...]  # those that the bundle has graphs for

    @property
    def lengths(self) -> list[int]:
        return list(range(1, self.widths[-1]))

    def taking(self, decode_s: float) -> "CostTable":
        """The same in seconds, of a model whose decode takes so long."""
        verify = {num_tokens: decode_s * cost for num_tokens, cost in self.verify.items()}
        return replace(self, draft=decode_s * self.draft, verify=verify)

    def call(self, num_tokens: int) -> float:
        """A graph costs what its width costs, however many of its tokens are padding."""
        width = next(width for width in self.widths if width >= num_tokens)
        return float(np.interp(width, list(self.verify), list(self.verify.values())))

    def measured(self, rng: np.random.Generator, error: float) -> Costs:
        """As a device measures itself at load: each call a few percent off."""
        verify = {width: self.call(width) * _factor(rng, error) for width in self.widths}
        return Costs(self.draft * _factor(rng, error), verify)


TINY_S = 0.0004  # of the tiny model's decode: several of its rounds are learnt from together
# Ratios of docs/benchmarks.md, of the stack of E2B's widths; and a device that computes, where
# most wait for memory: verifying 4 tokens costs 3.9 x one.
TABLES = {
    "LiteRT int8": CostTable(0.25, {1: 1, 2: 1.04, 4: 1.07, 8: 1.31}, (1, 2, 4, 8)),
    "LiteRT int4": CostTable(0.27, {1: 1, 2: 1.15, 4: 1.12, 8: 1.32}, (1, 2, 4, 8)),
    "ExecuTorch int8": CostTable(0.35, {1: 1, 2: 1.38, 4: 1.49, 8: 2.22}, tuple(range(1, 9))),
    "ExecuTorch int4": CostTable(0.55, {1: 1, 2: 1.32, 4: 1.52, 8: 2.10}, tuple(range(1, 9))),
    "ONNX int8": CostTable(0.09, {1: 1, 2: 1.17, 4: 1.55, 8: 2.02}, tuple(range(1, 9))),
    "slow device": CostTable(0.20, {1: 1, 2: 2.0, 4: 3.9, 8: 7.7}, (1, 2, 4, 8)),
    "tiny ONNX int8": CostTable(0.39, {1: 1, 2: 1.10, 4: 1.45, 8: 2.14}, tuple(range(1, 9))).taking(
        TINY_S
    ),
    "tiny model": CostTable(0.70, {1: 1, 2: 1.19, 4: 1.35, 8: 1.64}, (1, 2, 4, 8)).taking(TINY_S),
}
TABLES["tiny LiteRT int8"] = TABLES["LiteRT int8"].taking(TINY_S)
# The tiny model in float32 on ExecuTorch, as it is on machines that are more or less busy: three
# drafts of its own take as long as plain decoding, or less.
TINY_FLOAT32 = {
    name: CostTable(draft, dict(zip((1, 2, 4, 8), verify, strict=True)), tuple(range(1, 9))).taking(
        0.0007
    )
    for name, draft, verify in (
        ("as long", 0.41, (1, 1.55, 1.88, 3.1)),
        ("1.12 times as fast", 0.38, (1, 1.4, 1.65, 2.8)),
        ("1.2 times as fast", 0.36, (1, 1.3, 1.5, 2.6)),
    )
}


def _factor(rng: np.random.Generator, error: float) -> float:
    return float(np.exp(rng.normal(0, error)))


def trace(rng: np.random.Generator, *stretches: tuple[int, Sequence[float]]) -> np.ndarray:
    """[tokens, LONGEST]: would draft k after token t be right, had those before it been?

    Args:
        stretches: number of tokens, and the share of right drafts by position; the last share
            holds for all later positions.
    """
    parts = []
    for num_tokens, shares in stretches:
        by_position = [*shares, *[shares[-1]] * (LONGEST - len(shares))]
        parts.append(rng.random((num_tokens, LONGEST)) < np.array(by_position))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Noise:
    """Of the measured costs; what a simulation sums up are the true ones."""

    error: float = 0.05  # of every cost measured at load, for good
    jitter: float = 0.1  # of each call
    pauses: float = 0.01  # share of calls that take five times as long


def simulate(
    right: np.ndarray,
    table: CostTable,
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
        draft_s, verify_s = num_drafts * table.draft, table.call(num_verified)
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


def auto(table: CostTable, rng: np.random.Generator, noise: Noise = Noise()) -> AutoDraftLength:
    return AutoDraftLength(table.measured(rng, noise.error), table.lengths, PRIOR)


def fixed_costs(right: np.ndarray, table: CostTable) -> dict[int, np.ndarray]:
    """[tokens] cost of each token, by draft length, plain decoding's included: as `simulate`."""
    return {length: _fixed(right, table, length) for length in (0, *table.lengths)}


def _fixed(right: np.ndarray, table: CostTable, length: int) -> np.ndarray:
    accepted = np.cumprod(right[:, :length], axis=1).sum(axis=1).tolist()
    round_cost = length * table.draft + table.call(length + 1)
    cost, token = np.full(len(right), table.call(1)), 1
    while token < len(right):
        end = token + 1 + int(accepted[token])
        cost[token:end] = round_cost / (end - token)
        token = end
    return cost
