"""The speculative loop, once, for every backend.

prefill -> repeat { draft K tokens -> verify K + 1 in one call -> accept -> emit }.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

from runtime_py.backends import Backend, FloatArray
from runtime_py.decoding.accept import accept
from runtime_py.decoding.policy import DraftLength, FixedDraftLength, Outcome
from runtime_py.decoding.sampling import SamplingParams, choose
from runtime_py.errors import RunError

# Backend -> the generation that last wrote its rows; several sessions may share a backend.
_holders: WeakKeyDictionary[Backend, object] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Stops:
    """When generation ends: at whichever comes first, and not one token later."""

    max_new_tokens: int
    token_ids: Collection[int] = frozenset()  # a stop token is emitted, as the last one

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RunError(f"max-new-tokens is {self.max_new_tokens}; it must be 1 or more")


class Step(NamedTuple):
    """The tokens that one target call emitted."""

    token_ids: tuple[int, ...]
    num_drafted: int
    num_accepted: int  # before any stop shortened the step


class Session:
    """One sequence over one backend's KV buffer.

    Rows 0 .. kv_length - 1 hold the tokens in `committed`. A prompt that begins with the same
    tokens reuses their rows, so a chat does not prefill its history again; unless sliding layers
    have dropped rows it needs (`Backend.resumable_from`) or another session has used the backend.
    """

    def __init__(self, backend: Backend, context_length: int) -> None:
        self._backend = backend
        self._context_length = min(context_length, backend.cache_length)
        self.committed: list[int] = []
        self._last: object = None  # the latest generation

    @property
    def kv_length(self) -> int:
        return len(self.committed)

    def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        stops: Stops,
        draft_length: int | DraftLength,
    ) -> Iterator[Step]:
        """Emit the tokens that follow a prompt.

        The first step takes over the backend; an earlier generation on it cannot continue.

        Args:
            prompt_ids: the whole sequence so far, at least one token.
            sampling: how tokens are chosen.
            stops: when to end; the end of the context always ends it too.
            draft_length: drafts per round, 0 for plain decoding; or a policy that decides before
                each round. It never changes the emitted tokens.

        Raises:
            RunError: for an empty prompt, one that does not fit the context, or a draft length
                that this bundle's graphs cannot verify. A step raises it if another generation has
                begun on the backend since.
        """
        self._check(prompt_ids)
        if isinstance(draft_length, int):
            self.check_draft_length(draft_length)
            draft_length = FixedDraftLength(draft_length)
        return self._rounds(prompt_ids, sampling, stops, draft_length)

    def check_draft_length(self, draft_length: int) -> None:
        """Raises RunError for one that this bundle's graphs cannot verify."""
        longest = self.longest_draft
        if not 0 <= draft_length <= longest:
            raise RunError(f"draft length is {draft_length}; this bundle allows 0 .. {longest}")

    @property
    def longest_draft(self) -> int:
        """The most drafts that one target call can verify."""
        return self._backend.verify_widths[-1] - 1 if self._backend.has_drafter else 0

    def _check(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise RunError("the prompt is empty; it needs at least one token")
        if len(prompt_ids) >= self._context_length:
            raise RunError(
                f"the prompt has {len(prompt_ids)} tokens, the context holds "
                f"{self._context_length} with the answer; shorten the prompt or export with a "
                "larger --context"
            )
        vocab_size = self._backend.vocab_size
        if not all(0 <= token_id < vocab_size for token_id in prompt_ids):
            raise RunError(f"the prompt has a token id outside 0 .. {vocab_size - 1}")

    def _rounds(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        stops: Stops,
        draft_length: DraftLength,
    ) -> Iterator[Step]:
        last, room = prompt_ids[-1], self._context_length - len(prompt_ids)
        holder = self._take_over()
        self._prefill(prompt_ids[:-1])
        hidden: FloatArray | None = None  # the target's, at the position that produced `last`
        remaining = min(stops.max_new_tokens, room)
        while remaining > 0:
            if _holders.get(self._backend) is not holder:
                raise RunError(
                    "this answer cannot go on: another one has begun on the same backend and "
                    "written over its rows; generate anew, with what was said as part of the prompt"
                )
            begun = time.perf_counter()
            position = self.kv_length
            planned = draft_length.next_round()
            proposed: list[int] = []
            if planned.num_drafts and hidden is not None:
                num_drafts = min(planned.num_drafts, remaining - 1, self._widest_fit() - 1)
                proposed = self._draft(last, hidden, sampling, num_drafts)
            drafts = proposed if planned.verified else []
            drafted = time.perf_counter()
            logits, hiddens = self._backend.verify([last, *drafts], position)
            num_accepted, bonus = accept(drafts, logits, sampling, position + 1)
            hidden = hiddens[num_accepted]  # a view; the first draft copies it
            num_right = num_accepted if planned.verified else int(proposed[:1] == [bonus])
            verify_s = time.perf_counter() - drafted
            num_verified = 1 + len(drafts)
            draft_length.observe(
                Outcome(len(proposed), num_right, drafted - begun, verify_s, num_verified)
            )
            self.committed += [last, *drafts[:num_accepted]]
            emitted = _until_stop([*drafts[:num_accepted], bonus], stops.token_ids)
            yield Step(tuple(emitted), len(drafts), num_accepted)
            last, remaining = emitted[-1], remaining - len(emitted)
            if last in stops.token_ids:
                return

    def _take_over(self) -> object:
        """Become the generation that writes the backend's rows."""
        if _holders.get(self._backend) is not self._last:
            self.committed.clear()  # another session wrote over them
        self._last = _holders[self._backend] = object()
        return self._last

    def _prefill(self, token_ids: Sequence[int]) -> None:
        num_shared = 0
        for committed, token_id in zip(self.committed, token_ids, strict=False):
            if committed != token_id:
                break
            num_shared += 1
        if num_shared < self._backend.resumable_from:
            num_shared = 0  # rows were dropped: prefill from the start
        # Forget first: an interrupted prefill must not leave stale rows marked as committed.
        del self.committed[num_shared:]
        if len(token_ids) > num_shared:
            self._backend.prefill(token_ids[num_shared:], num_shared)
            self.committed += token_ids[num_shared:]

    def _widest_fit(self) -> int:
        """The widest target call that fits the rows left in the KV buffer, padding included."""
        rows_left = self._backend.cache_length - self.kv_length
        return max(width for width in self._backend.verify_widths if width <= rows_left)

    def _draft(
        self, last: int, hidden: FloatArray, sampling: SamplingParams, num_drafts: int
    ) -> list[int]:
        drafts: list[int] = []
        for _ in range(num_drafts):
            logits, hidden = self._backend.draft(last, hidden, self.kv_length)
            last = choose(logits, sampling, self.kv_length + 1 + len(drafts))
            drafts.append(last)
        return drafts


def _until_stop(token_ids: list[int], stop_ids: Collection[int]) -> list[int]:
    for index, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[: index + 1]
    return token_ids
