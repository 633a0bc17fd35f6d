"""One answer of a loaded bundle: its text as it comes, and its figures."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from runtime_py.backends import SessionOptions
from runtime_py.backends.load import load_backend, pick_runtime
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.text_stream import TextStream
from runtime_py.bundle.tokenizer import Tokenizer
from runtime_py.decoding.policy import DraftLength
from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session, Step, Stops
from runtime_py.draft_length.measure import auto_draft_length, remember

RECENT = 16  # rounds
# The model's own end, --max-new-tokens, or the end of the context.
FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class Loaded:
    """A bundle with its graphs in memory and every choice made."""

    session: Session
    tokenizer: Tokenizer
    sampling: SamplingParams
    stops: Stops
    draft_length: int | DraftLength


@contextmanager
def load(
    bundle: Bundle,
    tokenizer: Tokenizer,
    draft_length: int | Literal["auto"],
    *,
    runtime: str | None,
    options: SessionOptions,
    max_new_tokens: int,
    **values: Any,
) -> Iterator[Loaded]:
    """Load a bundle as the command line's options say; "auto": what pays best on this device.

    Raises:
        RunError: for a bundle that cannot be run, or options out of range.
    """
    sampling = SamplingParams(**values)
    stops = Stops(
        max_new_tokens=max_new_tokens, token_ids=frozenset(bundle.manifest.tokens.stop_token_ids)
    )
    name = pick_runtime(bundle, runtime)
    with closing(load_backend(bundle, name, options)) as backend:
        session = Session(backend, bundle.manifest.model.context_length)
        if draft_length != "auto":
            session.check_draft_length(draft_length)
            yield Loaded(session, tokenizer, sampling, stops, draft_length)
            return
        policy = auto_draft_length(bundle, name, backend, options)
        try:
            yield Loaded(session, tokenizer, sampling, stops, policy)
        finally:
            remember(policy)


class Answer:
    """One generation: its text as it comes, and its figures."""

    def __init__(self, bundle: Loaded, prompt_ids: list[int]) -> None:
        self._bundle = bundle
        self.prompt_ids = prompt_ids
        self.steps: list[Step] = []
        self.text = ""  # without thoughts
        self.finish_reason: FinishReason | None = None  # None until it ends by itself
        self.ends_in_thought = False
        self.prefill_s = 0.0  # until the first token is there
        self.decode_s = 0.0  # from then on
        self._ends_s: list[float] = []  # of the steps

    def stream(self) -> Iterator[str]:
        """Pieces of text as soon as they are whole."""
        bundle = self._bundle
        pieces = TextStream(bundle.tokenizer)
        start = time.perf_counter()
        for step in bundle.session.generate(
            self.prompt_ids, bundle.sampling, bundle.stops, bundle.draft_length
        ):
            now = time.perf_counter()
            if self.steps:
                self.decode_s = now - start - self.prefill_s
            else:
                self.prefill_s = now - start
            self.steps.append(step)
            self._ends_s.append(now)
            yield self._add(pieces.push(step.token_ids))
        yield self._add(pieces.finish())
        self.finish_reason = self._finish_reason(bundle.stops)
        self.ends_in_thought = pieces.thinking

    def _finish_reason(self, stops: Stops) -> FinishReason:
        token_ids = self.token_ids
        if token_ids and token_ids[-1] in stops.token_ids:
            return "stop"
        return "length" if len(token_ids) == stops.max_new_tokens else "context"

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece

    @property
    def token_ids(self) -> list[int]:
        return [token_id for step in self.steps for token_id in step.token_ids]

    @property
    def tokens_per_s(self) -> float | None:
        num_decoded = len(self.token_ids) - 1
        return num_decoded / self.decode_s if num_decoded > 0 and self.decode_s else None

    @property
    def accepted_per_round(self) -> float | None:
        rounds = [step.num_accepted for step in self.steps if step.num_drafted]
        return sum(rounds) / len(rounds) if rounds else None

    def status(self) -> str:
        """K of the last round, and accepted drafts and tokens per second of the last few."""
        steps, ends_s = self.steps[-RECENT:], self._ends_s[-RECENT:]
        parts = [f"K {steps[-1].num_drafted if steps else 0}"]
        rounds = [step.num_accepted for step in steps if step.num_drafted]
        if rounds:
            parts.append(f"{sum(rounds) / len(rounds):.1f} drafts accepted per round")
        if len(steps) > 1 and ends_s[-1] > ends_s[0]:
            num_tokens = sum(len(step.token_ids) for step in steps[1:])
            parts.append(f"{num_tokens / (ends_s[-1] - ends_s[0]):.1f} tokens/s")
        return " · ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """What --json prints."""
        length = self._bundle.draft_length
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "num_prompt_tokens": len(self.prompt_ids),
            "num_target_calls": len(self.steps),
            "draft_length": length if isinstance(length, int) else "auto",
            "accepted_per_round": self.accepted_per_round,
            "tokens_per_s": self.tokens_per_s,
            "prefill_s": self.prefill_s,
        }
