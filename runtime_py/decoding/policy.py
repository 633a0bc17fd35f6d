"""What the loop asks before each round, and what it says after it."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True)
class Round:
    """What to do next: draft, then verify the drafts; or, if not verified, decode and compare."""

    num_drafts: int
    verified: bool = True


class Outcome(NamedTuple):
    """What became of a round; a tuple, which is made faster than other frozen objects."""

    num_drafted: int
    num_accepted: int  # of a draft that was not verified: 1 if decode chose the same
    draft_s: float  # of all its drafts together
    verify_s: float
    num_verified: int  # tokens of the target call; 1 is decode


class DraftLength(Protocol):
    """Decides before each round; sees what became of it, if anything did."""

    def next_round(self) -> Round: ...
    def observe(self, outcome: Outcome) -> None: ...


class FixedDraftLength:
    """The same number in every round."""

    def __init__(self, num_drafts: int) -> None:
        self._round = Round(num_drafts)

    def next_round(self) -> Round:
        return self._round

    def observe(self, outcome: Outcome) -> None:
        pass
