"""reference.npz: the original model's answers, which `gemma-run check` replays."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from runtime_py.bundle.manifest import IGNORE_UNKNOWN, TokenEntry
from runtime_py.errors import RunError
from runtime_py.formats.npz import read_arrays
from runtime_py.formats.strict_json import read_json, read_object
from runtime_py.terminal.printable import shown

Ids = npt.NDArray[np.int32]
_TYPES = {
    "prompts": "|u1",
    "prompt_lengths": "<i4",
    "prompt_ids": "<i4",
    "greedy_ids": "<i4",
    "probe_ids": "<i4",
    "probe_logits": "<f4",
    "logit_scale": "<f4",
    "draft_ids": "<i4",
    "tokens": "|u1",
}
_MOST_UNSEEN = 8  # logit_scale is at most this many times the largest kept logit


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The original model's answers to N prompts: M greedy tokens each; stop tokens do not end one.

    Row i of the last four arrays belongs to the position that chose greedy token i, after the
    original's own text.
    """

    prompts: tuple[str, ...]
    prompt_ids: tuple[Ids, ...]  # N arrays of token ids
    greedy_ids: Ids  # [N, M]
    probe_ids: Ids  # [N, M, P] tokens whose logits were kept, the two most probable first
    probe_logits: npt.NDArray[np.float32]  # [N, M, P]
    logit_scale: float  # largest absolute logit seen
    draft_ids: Ids  # [N, M - K, K] what the original drafter proposes after greedy token i
    tokens: TokenEntry | None = None  # it was recorded with these; None in older recordings

    @property
    def num_prompts(self) -> int:
        return len(self.prompts)

    @property
    def margins(self) -> npt.NDArray[np.float32]:
        """[N, M] how far the chosen token's logit was above the next."""
        return self.probe_logits[..., 0] - self.probe_logits[..., 1]

    def behind(self, prompt: int, token: int, token_id: int) -> float:
        """How far a token's logit is below the chosen one's; infinite if it was not kept."""
        (kept,) = np.nonzero(self.probe_ids[prompt, token] == token_id)
        logits = self.probe_logits[prompt, token]
        return float(logits[0] - logits[kept[0]]) if kept.size else float("inf")

    def __post_init__(self) -> None:
        shapes_agree = (
            self.greedy_ids.ndim == 2
            and len(self.prompts) == len(self.prompt_ids) == self.greedy_ids.shape[0]
            and self.probe_ids.shape == self.probe_logits.shape
            and self.probe_ids.ndim == self.draft_ids.ndim == 3
            and self.probe_ids.shape[:2] == self.greedy_ids.shape
            and self.draft_ids.shape[0] == self.greedy_ids.shape[0]
            and self._drafts_fit()
        )
        if not shapes_agree or min(self.greedy_ids.shape) < 1 or self.probe_ids.shape[2] < 2:
            raise ValueError("array shapes do not fit each other")

    def _drafts_fit(self) -> bool:
        """Drafts are compared with the greedy tokens after the one they follow."""
        num_rounds, draft_length = self.draft_ids.shape[1:]
        most = int(self.greedy_ids.shape[1]) - draft_length
        return bool(draft_length == 0 or 1 <= num_rounds <= most)


def write_reference(path: Path, reference: Reference) -> None:
    """Write the arrays uncompressed, so that a reader knows their sizes in advance."""
    tokens = reference.tokens
    np.savez(
        path,
        prompts=_bytes(json.dumps(reference.prompts)),
        prompt_lengths=np.array([len(ids) for ids in reference.prompt_ids], np.int32),
        prompt_ids=np.concatenate(reference.prompt_ids).astype(np.int32),
        greedy_ids=reference.greedy_ids,
        probe_ids=reference.probe_ids,
        probe_logits=reference.probe_logits,
        logit_scale=np.array(reference.logit_scale, np.float32),
        draft_ids=reference.draft_ids,
        tokens=_bytes("null" if tokens is None else tokens.model_dump_json()),
    )


def _bytes(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def read_reference(path: Path, vocab_size: int, context_length: int) -> Reference:
    """Read a recorded reference. It cannot run code or unpack to more than the file's size.

    Args:
        path: of the file.
        vocab_size: every token in it must be below.
        context_length: a prompt and its greedy tokens must fit.

    Raises:
        RunError: if the file is damaged or belongs to another model.
    """
    try:
        arrays = read_arrays(path, _TYPES, optional=("tokens",))
        reference = _from_arrays(arrays)
        _check_values(reference, vocab_size, context_length)
    except (OSError, ValueError) as error:
        reason = shown(error, 200)
        raise RunError(f"{path}: not a recorded reference ({reason}); export again") from None
    return reference


def _from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Reference:
    prompts, lengths = read_json(arrays["prompts"].tobytes()), arrays["prompt_lengths"]
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("prompts that are no texts")
    if lengths.ndim != 1 or lengths.size == 0 or lengths.min() < 1:
        raise ValueError("prompts without tokens")
    ends = np.cumsum(lengths, dtype=np.int64)
    if arrays["prompt_ids"].shape != (ends[-1],):
        raise ValueError("prompts of other lengths")
    if arrays["logit_scale"].shape not in ((), (1,)):
        raise ValueError("several logit scales")
    return Reference(
        prompts=tuple(prompts),
        prompt_ids=tuple(np.split(arrays["prompt_ids"], ends[:-1])),
        greedy_ids=arrays["greedy_ids"],
        probe_ids=arrays["probe_ids"],
        probe_logits=arrays["probe_logits"],
        logit_scale=float(arrays["logit_scale"].ravel()[0]),
        draft_ids=arrays["draft_ids"],
        tokens=_tokens(arrays["tokens"].tobytes()) if "tokens" in arrays else None,
    )


def _tokens(text: bytes) -> TokenEntry | None:
    """The manifest's version says which keys it may have, and the manifest was checked for them."""
    if text == b"null":
        return None
    try:
        return TokenEntry.model_validate(read_object(text), context=IGNORE_UNKNOWN)
    except ValidationError:
        raise ValueError("tokens as no manifest has them") from None


def _check_values(reference: Reference, vocab_size: int, context_length: int) -> None:
    """Raises ValueError for values that no recording of this model can have."""
    for ids in (reference.greedy_ids, reference.probe_ids, reference.draft_ids):
        _check_ids(ids, vocab_size)
    longest = max(map(len, reference.prompt_ids)) + reference.greedy_ids.shape[1]
    if longest > context_length:
        raise ValueError(f"a text of {longest} tokens, the context holds {context_length}")
    for ids in reference.prompt_ids:
        _check_ids(ids, vocab_size)
    largest = float(np.abs(reference.probe_logits).max())
    # Errors are relative to the scale, so a wrong one would hide them all. It may be larger than
    # every kept logit, for not all logits are kept.
    if not largest / 2 <= reference.logit_scale <= _MOST_UNSEEN * largest < float("inf"):
        raise ValueError(f"a scale of {reference.logit_scale:.3g} of logits up to {largest:.3g}")
    if not reference.logit_scale > 0:
        raise ValueError("logits that are all 0")


def _check_ids(ids: Ids, vocab_size: int) -> None:
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise ValueError(f"token {wrong} of a vocabulary of {vocab_size}")


def acceptance(draft_ids: Ids, greedy_ids: Ids) -> npt.NDArray[np.float64]:
    """[K] the share of rounds in which drafts 0 .. j all equal the greedy text.

    Args:
        draft_ids: [N, S, K] drafts made after greedy tokens 0 .. S - 1.
        greedy_ids: [N, M] with M >= S + K.
    """
    num_rounds, draft_length = draft_ids.shape[1:]
    followed = np.stack(
        [greedy_ids[:, 1 + j : 1 + j + num_rounds] for j in range(draft_length)], axis=-1
    )
    right = np.cumprod(draft_ids == followed, axis=-1)
    return np.asarray(right.mean(axis=(0, 1)), np.float64)


def pooled_acceptance(reference: Reference) -> float:
    """Of all drafts that the original's target judged, the share that it accepted."""
    reached = acceptance(reference.draft_ids, reference.greedy_ids)  # draft j and all before it
    return float(reached.sum() / (1 + reached[:-1].sum())) if len(reached) else 0.5
