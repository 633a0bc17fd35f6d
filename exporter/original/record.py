"""Record the original's tokens and logits on a fixed set of prompts."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from exporter.errors import ExportError
from exporter.original.model import Original
from exporter.quantize import KvRange
from runtime_py.bundle.kv_rows import MARGIN, STEP, needed_rows
from runtime_py.bundle.reference import Ids, Reference
from runtime_py.formats.strict_json import read_object

logger = logging.getLogger(__name__)

NUM_PROBES = 64  # tokens per position whose logits are kept
SMALL_MODEL = 50_000_000  # weights; below it one thread runs the original fastest
LARGE_MODEL = 256_000_000  # weights; above it less is recorded
# (up to so many weights, tokens): E2B has 2.3e9, E4B 4.6e9 of them.
TOKENS_OF_LARGE = ((3_000_000_000, 32), (6_000_000_000, 16), (float("inf"), 8))
NUM_TOP_PROBES = 16  # of them, the most probable ones


@dataclass(frozen=True, kw_only=True)
class ReferenceSize:
    """How much of the original is recorded."""

    num_prompts: int = 20
    num_tokens: int = 64  # greedy tokens per prompt
    draft_length: int = 3  # drafts recorded after each of them
    max_prompt_length: int | None = None  # tokens; None: any that fits the context


def reference_size(num_multiplied: int, draft_length: int) -> ReferenceSize:
    """How much to record so that it takes a few minutes; each token is a pass over all layers.

    Args:
        num_multiplied: weights that every token is multiplied with (tables are only looked up).
        draft_length: drafts to record.
    """
    if num_multiplied <= LARGE_MODEL:
        return ReferenceSize(draft_length=draft_length)
    num_tokens = next(tokens for most, tokens in TOKENS_OF_LARGE if num_multiplied <= most)
    return ReferenceSize(
        num_prompts=8, num_tokens=num_tokens, draft_length=draft_length, max_prompt_length=256
    )


def choose_prompts(
    prompts: Sequence[tuple[str, Sequence[int]]], size: ReferenceSize, cache_length: int
) -> list[tuple[str, Sequence[int]]]:
    """The first prompts that leave room for the recorded tokens; short ones if there are any."""
    room = cache_length - size.num_tokens
    fitting = [prompt for prompt in prompts if len(prompt[1]) <= room]
    if size.max_prompt_length is not None:
        longest = size.max_prompt_length
        short = [prompt for prompt in fitting if len(prompt[1]) <= longest]
        fitting = short or sorted(fitting, key=lambda prompt: len(prompt[1]))[:1]
    return fitting[: size.num_prompts]


def long_length(window: int, size: ReferenceSize, cache_length: int) -> int | None:
    """Length of a prompt whose beginning is outside the sliding window at its end.

    Where the context has room, so long that a runtime has released rows by then. None if the
    context has no room for more than the window.
    """
    wanted = needed_rows(window) + MARGIN + STEP + 1
    length = min(wanted, cache_length - size.num_tokens)
    return length if length > window else None


@dataclass(frozen=True)
class Prompt:
    """One prompt: plain text to continue, or what a user says in a chat."""

    kind: str  # "text" or "chat"
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts, one JSON object {"kind": "text" | "chat", "text": …} per line.

    Raises:
        ExportError: naming the line that is not one.
    """
    try:
        # Some editors begin a file with a byte order mark; lines of JSON end with \n only.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{path}: prompts cannot be read ({error}); give a JSON-lines file"
        ) from None
    prompts = [
        _prompt(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()
    ]
    if not prompts:
        raise ExportError(f"{path}: no prompts in it; put one JSON object on each line")
    return prompts


def _prompt(path: Path, number: int, line: str) -> Prompt:
    try:
        values = read_object(line)
        prompt = Prompt(str(values["kind"]), str(values["text"]))
    except (ValueError, KeyError, TypeError):
        prompt = Prompt("", "")
    if prompt.kind not in ("text", "chat") or not prompt.text:
        raise ExportError(
            f"{path}: line {number} is {line[:60]!r}, "
            'needed {"kind": "text" or "chat", "text": "…"}'
        )
    return prompt


@dataclass(frozen=True)
class Recorded:
    """What the original said, and the ranges of its KV rows."""

    reference: Reference
    kv_ranges: Mapping[int, KvRange]


def record_reference(
    original: Original,
    prompts: Sequence[tuple[str, Sequence[int]]],
    size: ReferenceSize,
    progress: Callable[[int], None] = lambda _: None,
) -> Recorded:
    """Run the original on all prompts together, one pass over its layers for each token.

    Args:
        original: target and drafter as transformers evaluates them.
        prompts: text (for people) and token ids of each prompt.
        size: tokens and drafts to record.
        progress: called with the number of tokens done.
    """
    said_ids = original.said_ids
    probes = [_Probes(size, seed, said_ids) for seed in range(len(prompts))]
    tokens, drafts = [], []
    with torch.inference_mode(), _threads_that_pay(original):
        texts = original.begin([ids for _, ids in prompts])
        for index in range(size.num_tokens):
            # As transformers' SuppressTokensLogitsProcessor: the other tokens do not exist.
            said_logits = texts.logits[:, said_ids]
            for probe, logits in zip(probes, said_logits, strict=True):
                probe.add(logits)
            tokens.append(said_ids[said_logits.argmax(dim=-1)])
            if index < size.num_tokens - size.draft_length:
                drafts.append(texts.draft(tokens[-1], size.draft_length))
            if index + 1 < size.num_tokens:
                texts.advance(tokens[-1])
            progress(index + 1)
    reference = Reference(
        prompts=tuple(text for text, _ in prompts),
        prompt_ids=tuple(np.array(ids, np.int32) for _, ids in prompts),
        greedy_ids=_by_prompt(tokens),
        probe_ids=np.stack([np.stack(probe.ids) for probe in probes]).astype(np.int32),
        probe_logits=np.stack([np.stack(probe.logits) for probe in probes]),
        logit_scale=max(probe.scale for probe in probes),
        draft_ids=_by_prompt(drafts),
    )
    return Recorded(reference, texts.kv_ranges())


def _by_prompt(steps: Sequence[torch.Tensor]) -> Ids:
    """One tensor [N, ...] per token -> [N, M, ...]."""
    return torch.stack(list(steps), dim=1).numpy().astype(np.int32)


@contextmanager
def _threads_that_pay(original: Original) -> Iterator[None]:
    """Use one thread for a small model: it is faster, by far so on a busy machine."""
    num_threads = torch.get_num_threads()
    if original.num_weights < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class _Probes:
    """The logits to keep of one prompt: those of the most probable tokens, and random ones."""

    def __init__(self, size: ReferenceSize, seed: int, said_ids: torch.Tensor) -> None:
        self._size = size
        self._said_ids = said_ids
        self._generator = torch.Generator().manual_seed(seed)
        self.ids: list[Ids] = []
        self.logits: list[npt.NDArray[np.float32]] = []
        self.scale = 0.0

    def add(self, logits: torch.Tensor) -> None:
        """logits: of `said_ids`, one each."""
        num_said = len(logits)
        num_top = min(NUM_TOP_PROBES, num_said)
        top = logits.topk(num_top).indices
        others = torch.randint(num_said, (NUM_PROBES - num_top,), generator=self._generator)
        chosen = torch.cat((top, others))
        self.ids.append(self._said_ids[chosen].numpy())
        self.logits.append(logits[chosen].numpy())
        self.scale = max(self.scale, float(logits.abs().max()))
