"""How sure a bench is: an interval for the median of paired ratios of speeds."""

from collections.abc import Sequence
from math import ceil, comb, log2

# Not 95 %: several candidates are compared at once, each comparison with its own chance of error.
LEVEL = 0.99
MIN_TURNS = ceil(log2(2 / (1 - LEVEL)))  # with fewer, not even all values together are sure enough

Interval = tuple[float, float]


def ratio_interval(speeds: Sequence[float], others: Sequence[float]) -> Interval | None:
    """Of the median of speeds[i] / others[i], where both were measured in the same turn.

    Returns:
        (low, high); None where there are too few turns to be sure of anything.
    """
    return median_interval([one / other for one, other in zip(speeds, others, strict=True)])


def median_interval(values: Sequence[float]) -> Interval | None:
    """Where the median lies with a confidence of LEVEL, whatever the values' distribution.

    Each value is below the true median with a chance of one half. So the r smallest values and
    the r largest can be left out as long as it is unlikely (1 - LEVEL, both sides together) that
    fewer than r values lie on one side of it.
    """
    ordered, number = sorted(values), len(values)
    rank, tail = 0, 0.5**number
    while tail <= (1 - LEVEL) / 2:
        rank += 1
        tail += comb(number, rank) * 0.5**number
    return (ordered[rank - 1], ordered[number - rank]) if rank else None
