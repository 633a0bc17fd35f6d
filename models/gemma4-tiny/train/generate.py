"""Text which the target writes itself: what the drafter must predict when it is used."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Gemma4ForCausalLM, GenerationConfig

from .corpus import Document, chats
from .data import Mix
from .tokenizer import BOS, PAD, encode_request

log = logging.getLogger(__name__)

BATCH_LENGTH = 128  # windows
SHORTEST_PROMPT, LONGEST_PROMPT = 16, 64  # tokens
# One batch of each kind in turn. A temperature of 0 is greedy.
KINDS = (("text", 0.0), ("chat", 0.0), ("text", 0.0), ("text", 0.7))


def requests_by_length(tokenizer: Tokenizer, documents: list[Document]) -> dict[int, list[Tensor]]:
    """Return the encoded requests of the pages, by their number of tokens."""
    found: dict[int, list[Tensor]] = {}
    for document in documents:
        for chat in chats(document):
            row = torch.tensor(encode_request(tokenizer, chat.request))
            found.setdefault(len(row), []).append(row)
    return {length: rows for length, rows in found.items() if len(rows) >= BATCH_LENGTH}


@torch.no_grad()
def continue_rows(
    target: Gemma4ForCausalLM, prompts: Tensor, length: int, temperature: float
) -> Tensor:
    """Continue [B, P] prompts to [B, length] tokens, over ends of turns and of texts."""
    config = GenerationConfig(
        max_new_tokens=length - prompts.shape[1],
        do_sample=temperature > 0,
        pad_token_id=PAD,
        bos_token_id=BOS,
        **({"temperature": temperature, "top_k": 0} if temperature > 0 else {}),
    )
    kept = target.generation_config
    target.generation_config = GenerationConfig(pad_token_id=PAD, bos_token_id=BOS)
    try:
        return target.generate(
            prompts, attention_mask=torch.ones_like(prompts), generation_config=config
        )
    finally:
        target.generation_config = kept


def windows(
    target: Gemma4ForCausalLM,
    mix: Mix,
    requests: dict[int, list[Tensor]],
    num_batches: int,
    length: int,
) -> Tensor:
    """Return [num_batches * BATCH_LENGTH, length] tokens: prompts to train on, continued."""
    torch.manual_seed(2)
    began = time.monotonic()
    found = []
    lengths = sorted(requests)
    for batch in range(num_batches):
        kind, temperature = KINDS[batch % len(KINDS)]
        if kind == "chat":
            rows = requests[lengths[int(torch.randint(len(lengths), ()))]]
            picks = torch.randint(len(rows), (BATCH_LENGTH,))
            prompts = torch.stack([rows[int(pick)] for pick in picks])
        else:
            prompt_length = int(torch.randint(SHORTEST_PROMPT, LONGEST_PROMPT + 1, ()))
            starts = mix.raw.starts[torch.randint(len(mix.raw.starts), (BATCH_LENGTH,))]
            rows = [mix.raw.window(int(start), prompt_length) for start in starts]
            prompts = torch.stack(rows)
        found.append(continue_rows(target, prompts, length, temperature))
        took_s = time.monotonic() - began
        log.info("generate  batch %d of %d, %.0f s", batch + 1, num_batches, took_s)
    return torch.cat(found)


def windows_once(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """Return the windows kept in ``path``; make and keep them if there are none."""
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path)
