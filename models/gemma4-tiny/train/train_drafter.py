"""Train the drafter against the frozen target: all positions of a window and K steps at once."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM, GenerationConfig

from .assistant import KeysValues
from .configs import FULL, SLIDING, drafter_config, write_head_lengths_as_published
from .data import Mix
from .run import Run, optimizers
from .tokenizer import BOS, END_OF_TURN, EOS, PAD

log = logging.getLogger(__name__)

SEED = 1
LR, MUON_LR = 2e-3, 0.02
NUM_STEPS = 4  # draft steps unrolled
WINDOW_LENGTH = 192  # tokens
GENERATED_SHARE = 0.7  # of the windows; the rest is the corpus


@dataclass(frozen=True)
class Teacher:
    """What the frozen target says about windows of tokens [B, T]."""

    embeddings: Tensor  # [B, T, D], as the target scales them
    hidden: Tensor  # [B, T, D], after the final norm
    logits: Tensor  # [B, T, V]
    keys_values: KeysValues


def new_drafter(target: Gemma4ForCausalLM) -> Gemma4AssistantForCausalLM:
    """Return the untrained drafter, begun in the main directions of the target's embedding."""
    torch.manual_seed(SEED)
    drafter = Gemma4AssistantForCausalLM(drafter_config())
    embedding = target.get_input_embeddings().weight.detach().float()  # [V, D]
    narrow = torch.linalg.svd(embedding, full_matrices=False).Vh[: drafter.hidden_size]  # [d, D]
    with torch.no_grad():
        drafter.lm_head.weight.copy_(embedding @ narrow.T)
        drafter.pre_projection.weight.copy_(torch.cat([narrow, narrow], dim=1))
        drafter.post_projection.weight.copy_(narrow.T)
    return drafter


@torch.no_grad()
def ask(target: Gemma4ForCausalLM, tokens: Tensor) -> Teacher:
    """Run the target over windows [B, T]."""
    output = target(
        input_ids=tokens,
        output_hidden_states=True,
        return_shared_kv_states=True,
        use_cache=False,
    )
    return Teacher(
        embeddings=target.get_input_embeddings()(tokens),
        hidden=output.hidden_states[-1],
        logits=output.logits,
        keys_values=dict(output.shared_kv_states),
    )


def masks(length: int, sliding_window: int) -> dict[str, Tensor]:
    """Masks [1, 1, T, T]: the drafter at position t reads the rows committed before t.

    Its sliding layers see sliding_window + 1 of them, counted from the end, as in transformers.
    """
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    committed = key < query
    near = committed & (key >= query - 1 - sliding_window)
    return {FULL: committed[None, None], SLIDING: near[None, None]}


def unroll(drafter: Gemma4AssistantForCausalLM, teacher: Teacher) -> list[Tensor]:
    """Return the drafter's hidden states [B, T, d] of each draft step.

    Step k at position t has read the tokens up to t + k and proposes token t + k + 1.
    """
    length = teacher.hidden.shape[1]
    position_ids = torch.arange(length)[None]
    mask = masks(length, drafter.config.get_text_config().sliding_window)
    hidden = F.pad(teacher.hidden, (0, 0, 1, 0))[:, :-1]
    steps = []
    for k in range(NUM_STEPS):
        embeddings = torch.roll(teacher.embeddings, -k, dims=1)
        output = drafter.model(
            inputs_embeds=drafter.pre_projection(torch.cat([embeddings, hidden], dim=-1)),
            attention_mask=mask,
            position_ids=position_ids,
            shared_kv_states=teacher.keys_values,
            use_cache=False,
            # transformers 5.23.0 slices absent per-layer inputs for more than one query without.
            output_hidden_states=True,
        )
        steps.append(output.last_hidden_state)
        hidden = drafter.post_projection(output.last_hidden_state)
    return steps


def answered(step: int, rows: Tensor) -> Tensor:
    """Line up [B, T, ...] of the target with draft step ``step``; positions without are cut."""
    return torch.roll(rows, -step, dims=1)[:, 1:-NUM_STEPS]


def drafter_loss(
    target: Gemma4ForCausalLM, drafter: Gemma4AssistantForCausalLM, tokens: Tensor
) -> Tensor:
    """Mean KL divergence from target to drafter over the draft steps, in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        teacher = ask(target, tokens)
        proposals = [
            drafter.lm_head(hidden[:, 1:-NUM_STEPS]) for hidden in unroll(drafter, teacher)
        ]
    log_target = teacher.logits.float().log_softmax(dim=-1)
    total = torch.zeros(())
    for step, logits in enumerate(proposals):
        log_drafter = logits.float().log_softmax(dim=-1)
        wanted = answered(step, log_target)
        total = total + (wanted.exp() * (wanted - log_drafter)).sum(dim=-1).mean()
    return total / NUM_STEPS


@dataclass(frozen=True)
class DrafterMix:
    """Windows of the corpus and of text which the target wrote, the same for each step number."""

    corpus: Mix
    generated: Tensor  # [N, WINDOW_LENGTH]
    batch_length: int = 16  # windows

    def batch(self, step: int) -> Tensor:
        """Return [batch_length, WINDOW_LENGTH] tokens."""
        random = torch.Generator().manual_seed(step)
        num_generated = round(GENERATED_SHARE * self.batch_length)
        picks = torch.randint(len(self.generated), (num_generated,), generator=random)
        corpus = self.corpus.batch(step, WINDOW_LENGTH)[num_generated - self.batch_length :]
        return torch.cat([self.generated[picks], corpus])


def train(
    target: Gemma4ForCausalLM, mix: DrafterMix, work: Path, minutes: float
) -> Gemma4AssistantForCausalLM:
    """Train all but the centroids for ``minutes``, or go on with the run found in ``work``."""
    target.requires_grad_(False)
    drafter = new_drafter(target)
    compiled_loss = torch.compile(drafter_loss, dynamic=False)
    run = Run(drafter, optimizers(drafter, LR, MUON_LR), work / "drafter.pt", minutes)
    run.train(
        lambda step: compiled_loss(target, drafter, mix.batch(step)),
        tokens_per_step=mix.batch_length * WINDOW_LENGTH,
    )
    return drafter


def save(drafter: Gemma4AssistantForCausalLM, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors (bfloat16)."""
    drafter.generation_config = GenerationConfig(
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=[EOS, END_OF_TURN],
        num_assistant_tokens=4,
        num_assistant_tokens_schedule="constant",
    )
    drafter.to(torch.bfloat16).save_pretrained(folder)
    write_head_lengths_as_published(folder)
