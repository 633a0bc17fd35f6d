"""Measure how many drafts the target accepts, over the held-out prompts."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, Gemma4AssistantForCausalLM, Gemma4ForCausalLM

from .assistant import KeysValues, allow_assistants, draft
from .tokenizer import BOS, END_OF_TURN, EOS, encode_request

log = logging.getLogger(__name__)

STOP_TOKENS = (EOS, END_OF_TURN)


@dataclass(frozen=True)
class Trace:
    """One greedy generation with drafts."""

    tokens: list[int]  # emitted after the prompt
    num_accepted: list[int]  # per round, 0..K


@dataclass(frozen=True)
class Acceptance:
    """Rounds of all prompts together."""

    draft_length: int
    num_accepted: list[int]  # per round

    @property
    def mean(self) -> float:
        """Accepted drafts per round, 0..K."""
        return sum(self.num_accepted) / len(self.num_accepted)

    @property
    def by_position(self) -> list[float]:
        """Part of the rounds in which draft 1..K was accepted, together with all before it."""
        rounds = len(self.num_accepted)
        return [
            sum(num >= position for num in self.num_accepted) / rounds
            for position in range(1, self.draft_length + 1)
        ]

    def __str__(self) -> str:
        positions = ", ".join(f"{part:.3f}" for part in self.by_position)
        return (
            f"K = {self.draft_length}: {self.mean:.3f} drafts accepted per round, "
            f"by position {positions}, {len(self.num_accepted)} rounds"
        )


def load(folder: Path) -> tuple[Gemma4ForCausalLM, Gemma4AssistantForCausalLM]:
    """Load target and drafter below ``folder``: the bfloat16 weights, computed in float32."""
    allow_assistants()
    target = Gemma4ForCausalLM.from_pretrained(folder / "target", dtype=torch.float32)
    drafter = Gemma4AssistantForCausalLM.from_pretrained(folder / "drafter", dtype=torch.float32)
    return target.eval().requires_grad_(False), drafter.eval().requires_grad_(False)


def read_prompts(folder: Path) -> list[list[int]]:
    """Return the tokens of the held-out prompts, with bos; chats as the template writes them."""
    tokenizer = Tokenizer.from_file(str(folder / "target" / "tokenizer.json"))
    prompts = []
    for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)
        if prompt["kind"] == "chat":
            prompts.append(encode_request(tokenizer, prompt["text"]))
        else:
            prompts.append([BOS, *tokenizer.encode(prompt["text"]).ids])
    return prompts


def plain(target: Gemma4ForCausalLM, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Return the tokens the target emits by itself; the reference for every other way."""
    row = torch.tensor([prompt])
    output = target.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=num_tokens, do_sample=False
    )
    return output[0, len(prompt) :].tolist()


@torch.no_grad()
def speculative(
    target: Gemma4ForCausalLM,
    drafter: Gemma4AssistantForCausalLM,
    prompt: Sequence[int],
    draft_length: int,
    num_tokens: int,
) -> Trace:
    """Generate greedily with ``draft_length`` drafts per round, up to the first stop token."""
    tokens = list(prompt)
    num_accepted: list[int] = []
    cache = DynamicCache()  # without a configuration it keeps all rows, so it can be cropped
    fed, drafts = tokens, []
    while True:
        output = target(
            input_ids=torch.tensor([fed]),
            cache=cache,
            output_hidden_states=True,
            return_shared_kv_states=True,
        )
        judged = output.logits[0, -1 - len(drafts) :].argmax(dim=-1).tolist()
        accepted = count_accepted(drafts, judged)
        if drafts:
            num_accepted.append(accepted)
        tokens += judged[: accepted + 1]
        emitted = cut(tokens[len(prompt) :], num_tokens)
        if len(emitted) == num_tokens or emitted[-1] in STOP_TOKENS:
            return Trace(emitted, num_accepted)
        num_refused = len(drafts) - accepted
        if num_refused:
            cache.crop(-num_refused)
        hidden = output.hidden_states[-1][:, -1 - len(drafts) + accepted][:, None]
        committed = commit(output.shared_kv_states, len(tokens) - 1)
        drafts = draft(target, drafter, tokens, hidden, committed, draft_length)
        fed = [tokens[-1], *drafts]


def commit(keys_values: KeysValues, kv_length: int) -> KeysValues:
    """Keep the first ``kv_length`` rows: those of a refused draft are not part of the text."""
    return {
        name: (keys[:, :, :kv_length], values[:, :, :kv_length])
        for name, (keys, values) in keys_values.items()
    }


def count_accepted(drafts: list[int], judged: list[int]) -> int:
    """Return the length of the longest prefix of the drafts which the target agrees with."""
    for index, token in enumerate(drafts):
        if token != judged[index]:
            return index
    return len(drafts)


def cut(emitted: list[int], num_tokens: int) -> list[int]:
    """Cut after the first stop token and after ``num_tokens`` tokens."""
    for index, token in enumerate(emitted[:num_tokens]):
        if token in STOP_TOKENS:
            return emitted[: index + 1]
    return emitted[:num_tokens]


def acceptance(
    target: Gemma4ForCausalLM,
    drafter: Gemma4AssistantForCausalLM,
    prompts: list[list[int]],
    draft_length: int,
    num_tokens: int,
) -> Acceptance:
    """Generate ``num_tokens`` tokens after each prompt and count the accepted drafts."""
    num_accepted: list[int] = []
    for prompt in prompts:
        trace = speculative(target, drafter, prompt, draft_length, num_tokens)
        num_accepted += trace.num_accepted
    return Acceptance(draft_length, num_accepted)
