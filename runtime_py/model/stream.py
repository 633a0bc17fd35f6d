"""One generation as it runs: its pieces as they come, and its figures."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Literal

from runtime_py.bundle.text_stream import TextStream
from runtime_py.bundle.tokenizer import Tokenizer
from runtime_py.decoding.session import Step, Stops

# The model's own end; max_new_tokens; the end of the context; or the program wanted no more.
FinishReason = Literal["stop", "length", "context", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Stats:
    """The figures of a generation."""

    num_prompt_tokens: int
    num_target_calls: int  # rounds; each is one call of the target
    draft_length: int | Literal["auto"]  # as asked for
    accepted_per_round: float | None  # of rounds with drafts; None: there was no such round
    tokens_per_s: float | None  # from the second token on; None: there was no second
    prefill_s: float  # until the first token was there
    decode_s: float  # from then on


@dataclass(frozen=True, kw_only=True)
class Result:
    """A generation that has ended, or what there is of one that has not."""

    text: str  # without thoughts and control tokens
    token_ids: tuple[int, ...]  # all, the stop token included
    finish_reason: FinishReason
    ends_in_thought: bool  # it ended before a thought did
    stats: Stats


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one round added."""

    text: str  # may be empty: thoughts are left out, halves of characters wait for the other half
    token_ids: tuple[int, ...]
    num_drafted: int
    num_accepted: int
    finish_reason: FinishReason | None = None  # set in the last piece, which has no tokens


class Stream(Iterator[Piece]):
    """A generation that runs while it is iterated over; it may be left at any piece."""

    def __init__(
        self,
        steps: Iterator[Step],
        tokenizer: Tokenizer,
        stops: Stops,
        should_stop: Callable[[], bool] | None,
        asked: tuple[int, int | Literal["auto"]],
    ) -> None:
        self._steps = steps
        self._stops = stops
        self._should_stop = should_stop
        self._num_prompt_tokens, self._draft_length = asked
        self._decoder = TextStream(tokenizer)
        self._texts: list[str] = []
        self._done: list[Step] = []
        self._prefill_s = self._decode_s = 0.0
        self._finish_reason: FinishReason = "stopped"
        self._pieces = self._run()

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """End the generation here; the model can be used for another."""
        self._pieces.close()

    @property
    def result(self) -> Result:
        """What was generated so far; its finish_reason is "stopped" unless the stream has ended."""
        rounds = [step.num_accepted for step in self._done if step.num_drafted]
        token_ids = self._token_ids()
        num_decoded = len(token_ids) - 1
        fast = num_decoded > 0 and self._decode_s > 0
        stats = Stats(
            num_prompt_tokens=self._num_prompt_tokens,
            num_target_calls=len(self._done),
            draft_length=self._draft_length,
            accepted_per_round=sum(rounds) / len(rounds) if rounds else None,
            tokens_per_s=num_decoded / self._decode_s if fast else None,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
        )
        return Result(
            text="".join(self._texts),
            token_ids=token_ids,
            finish_reason=self._finish_reason,
            ends_in_thought=self._decoder.thinking,
            stats=stats,
        )

    def _run(self) -> Generator[Piece, None, None]:
        start = time.perf_counter()
        while not (stopped := self._should_stop is not None and self._should_stop()):
            step = next(self._steps, None)
            if step is None:
                break
            self._clock(time.perf_counter() - start)
            self._done.append(step)
            yield self._piece(self._decoder.push(step.token_ids), step)
        self._finish_reason = self._reason(stopped)
        yield self._piece(self._decoder.finish(), Step((), 0, 0), self._finish_reason)

    def _clock(self, elapsed_s: float) -> None:
        if self._done:
            self._decode_s = elapsed_s - self._prefill_s
        else:
            self._prefill_s = elapsed_s

    def _piece(self, text: str, step: Step, finish_reason: FinishReason | None = None) -> Piece:
        self._texts.append(text)
        return Piece(
            text=text,
            token_ids=step.token_ids,
            num_drafted=step.num_drafted,
            num_accepted=step.num_accepted,
            finish_reason=finish_reason,
        )

    def _token_ids(self) -> tuple[int, ...]:
        return tuple(token_id for step in self._done for token_id in step.token_ids)

    def _reason(self, stopped: bool) -> FinishReason:
        token_ids = self._token_ids()
        if token_ids and token_ids[-1] in self._stops.token_ids:
            return "stop"
        if len(token_ids) == self._stops.max_new_tokens:
            return "length"
        return "stopped" if stopped else "context"
