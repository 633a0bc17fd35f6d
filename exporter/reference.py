"""Record what the original says: transformers, eager, float32, on a fixed set of prompts."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.errors import ExportError
from exporter.original import Original
from runtime_py.reference import Reference

logger = logging.getLogger(__name__)

NUM_PROBES = 64  # tokens per position whose logits are kept
SMALL_MODEL = 50_000_000  # weights; below it one thread runs the original fastest
NUM_TOP_PROBES = 16  # of them, the most probable ones


@dataclass(frozen=True, kw_only=True)
class ReferenceSize:
    """How much of the original is recorded."""

    num_prompts: int = 20
    num_tokens: int = 64  # greedy tokens per prompt
    draft_length: int = 3  # drafts recorded after each of them


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
        lines = path.read_text(encoding="utf-8").splitlines()
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
        values = json.loads(line)
        prompt = Prompt(str(values["kind"]), str(values["text"]))
    except (ValueError, KeyError, TypeError):
        prompt = Prompt("", "")
    if prompt.kind not in ("text", "chat") or not prompt.text:
        raise ExportError(
            f"{path}: line {number} is {line[:60]!r}, "
            'needed {"kind": "text" or "chat", "text": "…"}'
        )
    return prompt


def record_reference(
    original: Original,
    prompts: Sequence[tuple[str, Sequence[int]]],
    size: ReferenceSize,
    progress: Callable[[int], None] = lambda _: None,
) -> Reference:
    """Run the original.

    Args:
        original: target and drafter as transformers loads them.
        prompts: text (for people) and token ids of each prompt.
        size: tokens and drafts to record.
        progress: called with the number of prompts done.
    """
    records = []
    with torch.inference_mode(), _threads_that_pay(original):
        for index, (_, prompt_ids) in enumerate(prompts):
            records.append(_record(original, list(prompt_ids), size, seed=index))
            progress(index + 1)
    return Reference(
        prompts=tuple(text for text, _ in prompts),
        prompt_ids=tuple(np.array(ids, np.int32) for _, ids in prompts),
        greedy_ids=np.stack([record.greedy_ids for record in records]),
        probe_ids=np.stack([record.probe_ids for record in records]),
        probe_logits=np.stack([record.probe_logits for record in records]),
        logit_scale=max(record.logit_scale for record in records),
        draft_ids=np.stack([record.draft_ids for record in records]),
    )


@contextmanager
def _threads_that_pay(original: Original) -> Iterator[None]:
    """Small matrices are quicker on one thread, many times so on a machine that is busy."""
    num_threads = torch.get_num_threads()
    if original.num_weights < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@dataclass(frozen=True)
class _Record:
    greedy_ids: Any
    probe_ids: Any
    probe_logits: Any
    logit_scale: float
    draft_ids: Any


def _record(original: Original, prompt_ids: list[int], size: ReferenceSize, seed: int) -> _Record:
    greedy_ids = original.greedy(prompt_ids, size.num_tokens)
    read = original.read([*prompt_ids, *greedy_ids])
    first = len(prompt_ids) - 1  # the row that chose the first greedy token
    logits = read.logits[first : first + size.num_tokens]  # [M, V]
    probe_ids = _probe_ids(logits, seed)
    drafts = [
        original.draft(read, len(prompt_ids) + token, size.draft_length)
        for token in range(size.num_tokens - size.draft_length)
    ]
    return _Record(
        np.array(greedy_ids, np.int32),
        probe_ids.numpy().astype(np.int32),
        logits.gather(1, probe_ids).numpy(),
        float(logits.abs().max()),
        np.array(drafts, np.int32),
    )


def _probe_ids(logits: torch.Tensor, seed: int) -> torch.Tensor:
    num_rows, vocab_size = logits.shape
    num_top = min(NUM_TOP_PROBES, vocab_size)
    top = logits.topk(num_top, dim=-1).indices
    generator = torch.Generator().manual_seed(seed)
    others = torch.randint(vocab_size, (num_rows, NUM_PROBES - num_top), generator=generator)
    return torch.cat((top, others), dim=-1)
