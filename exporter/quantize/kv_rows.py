"""int8 KV rows: one scale for all keys of a layer, and one for all its values.

The scales are constants of the graphs, as in Google's own E2B bundle. One for all rows is enough
because rows are normed: values have a root mean square of 1, keys that of their norm's weight.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from exporter.config import KvType
from runtime_py.bundle.manifest import Tolerances

KV_BYTES: Mapping[KvType, int] = {"float32": 4, "int8": 1}  # of a number
LARGEST = 127
# Numbers beyond the recorded range are clipped; a little headroom costs less than clipping.
HEADROOM = 1.1
# What int8 rows alone may cost, on any checkpoint. The tiny model: 2.6e-2, 98.8 %, no loss.
ALLOWED = Tolerances(max_logit_error=0.1, min_agreement=0.97, min_acceptance_ratio=0.95)


@dataclass(frozen=True)
class KvRange:
    """The largest absolute numbers in the rows of a layer."""

    keys: float
    values: float

    @property
    def key_scale(self) -> float:
        """Keys are integers times this."""
        return _scale(self.keys)

    @property
    def value_scale(self) -> float:
        return _scale(self.values)


def widened(own: Tolerances) -> Tolerances:
    """The tolerances of a recipe with int8 rows: independent errors add up as squares."""
    return Tolerances(
        max_logit_error=math.hypot(own.max_logit_error, ALLOWED.max_logit_error),
        min_agreement=_less(own.min_agreement, ALLOWED.min_agreement),
        min_acceptance_ratio=_less(own.min_acceptance_ratio, ALLOWED.min_acceptance_ratio),
    )


def _less(share: float, other: float) -> float:
    return max(0.0, 1.0 - math.hypot(1.0 - share, 1.0 - other))


def _scale(largest: float) -> float:
    """All numbers 0: any scale but 0 will do, for it divides."""
    return HEADROOM * (largest or 1.0) / LARGEST
