"""What rounds cost now, in seconds: measured at load, then followed from round to round.

A hot or busy machine slows all rounds alike: one level follows that. What a round costs beside the
others is a running mean. Where the number of drafts changes, the level is known: a difference is
the round's own, or after plain rounds that of all with drafts. In a row alike it is the level's.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from runtime_py.bundle.manifest import Share

LEVEL_RATE = 0.3  # of a change goes to the level at once: a busy machine shows in a few rounds
MOST_CHANGE = 1.2  # times the estimate, or its inverse: a pause of the machine counts as no more
NUM_MEASURED = 3.0  # samples that a measured cost counts for: a moment at load may mislead
MOST_SAMPLES = 32.0  # that any cost counts for: costs grow with the context
NUM_OWN = 3  # rounds after a change of length that show its own cost: one alone is mostly noise

Seconds = Annotated[float, Field(ge=1e-7, le=1e3)]


class Known(BaseModel):
    """What is known of a bundle on this device; the content of its cache file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    round_s: list[Seconds]  # by number of drafts, all verified; of 0, plain decoding
    draft_s: Seconds  # of one draft that is compared
    acceptance: Share  # of all drafts
    measured_at: Annotated[float, Field(ge=0)] = 0.0  # seconds since 1970


class Costs:
    """Seconds of a round, by its number of drafts."""

    def __init__(self, known: Known) -> None:
        self.round_s = list(known.round_s)  # at level 1
        self.num_samples = [NUM_MEASURED] * len(known.round_s)
        self._level = 1.0  # how slow the machine is, beside when the costs were measured
        self._last = self._in_row = 0  # drafts of the present row of alike rounds, and its length
        self._num_own = 0  # of its first rounds, those that show their own cost
        self._shown: Sequence[int] = []  # and whose cost it is

    def __getitem__(self, num_drafts: int) -> float:
        return self._level * self.round_s[num_drafts]

    def observe(self, num_drafts: int, seconds: float) -> None:
        if num_drafts != self._last:
            self._shown = range(1, len(self.round_s)) if not self._last else [num_drafts]
            self._num_own = NUM_OWN if self._in_row >= NUM_OWN else 0
            self._last, self._in_row = num_drafts, 0
        self._in_row += 1
        change = max(seconds, 1e-7) / self[num_drafts]  # a clock may be coarse
        change = min(max(change, 1 / MOST_CHANGE), MOST_CHANGE)
        if self._in_row > self._num_own:
            self._level *= 1 + LEVEL_RATE * (change - 1)
            return
        for each in self._shown:
            self.num_samples[each] = min(self.num_samples[each] + 1, MOST_SAMPLES)
            self.round_s[each] *= 1 + (change - 1) / self.num_samples[each]
