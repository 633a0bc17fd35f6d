"""How sure a bench is: an interval for the median of paired ratios of speeds."""

from collections.abc import Sequence
from math import ceil, comb, log2

# Not 95 %: several candidates are compared at once, each comparison with its own chance of error.
LEVEL = 0.99
MIN_TURNS = ceil(log2(2 / (1 - LEVEL)))  # with fewer, even smallest to largest is not sure enough

Interval = tuple[float, float]


def ratio_interval(speeds: Sequence[float], others: Sequence[float]) -> Interval | None:
    """An interval for the median of speeds[i] / others[i], each pair measured in the same turn.

    Returns:
        (low, high), or None if there are fewer than MIN_TURNS pairs.
    """
    return median_interval([one / other for one, other in zip(speeds, others, strict=True)])


def median_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """A confidence interval of the median, whatever the distribution; None for too few values.

    Each value is below the true median with a chance of one half. So the r smallest values and
    the r largest can be left out as long as it is unlikely (1 - level, both sides together) that
    fewer than r values lie on one side of it.
    """
    ordered, number = sorted(values), len(values)
    rank, tail = 0, 0.5**number
    while tail <= (1 - level) / 2:
        rank += 1
        tail += comb(number, rank) * 0.5**number
    return (ordered[rank - 1], ordered[number - rank]) if rank else None
