"""How the loop asks for the next draft length, and reports what came of it."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True)
class Round:
    """The next round: draft and verify; or, if not verified, draft, decode plainly and compare."""

    num_drafts: int
    verified: bool = True


class Outcome(NamedTuple):
    """What a round cost and achieved. A tuple: it is created faster than a frozen dataclass."""

    num_drafted: int
    num_accepted: int  # of an unverified draft: 1 if decode chose the same token
    draft_s: float  # all its drafts together
    verify_s: float
    num_verified: int  # tokens in the target call; 1 is a decode


class DraftLength(Protocol):
    """A policy: decides before each round, and learns from its outcome."""

    def next_round(self) -> Round: ...
    def observe(self, outcome: Outcome) -> None: ...


class FixedDraftLength:
    """The same number of drafts in every round."""

    def __init__(self, num_drafts: int) -> None:
        self._round = Round(num_drafts)

    def next_round(self) -> Round:
        return self._round

    def observe(self, outcome: Outcome) -> None:
        pass
