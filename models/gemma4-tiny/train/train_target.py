"""Train the target on pages and chats, and write it as a Hugging Face folder in bfloat16."""

import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Gemma4ForCausalLM, GenerationConfig

from .configs import LAYER_SCALARS, target_config, write_head_lengths_as_published
from .data import WINDOW_LENGTH, Mix, validation_windows
from .run import Run, optimizers
from .tokenizer import BOS, END_OF_TURN, EOS, PAD

log = logging.getLogger(__name__)

SEED = 0
LR, MUON_LR = 3e-3, 0.02


def new_target() -> Gemma4ForCausalLM:
    """Return the untrained target. The PLE table and the layer scalars get useful sizes."""
    torch.manual_seed(SEED)
    target = Gemma4ForCausalLM(target_config())
    for layer, scalar in zip(target.model.layers, LAYER_SCALARS, strict=True):
        layer.layer_scalar.fill_(scalar)
    return target


def token_loss(target: Gemma4ForCausalLM, tokens: Tensor) -> Tensor:
    """Mean loss in nats per token of [B, T] tokens, computed in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = target(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def train(mix: Mix, work: Path, minutes: float) -> Gemma4ForCausalLM:
    """Train for ``minutes`` of wall-clock time, or go on with the run found in ``work``."""
    target = new_target()
    compiled_loss = torch.compile(token_loss, dynamic=False)
    run = Run(target, optimizers(target, LR, MUON_LR), work / "target.pt", minutes)
    run.train(
        lambda step: compiled_loss(target, mix.batch(step, WINDOW_LENGTH + 1)),
        tokens_per_step=mix.batch_length * WINDOW_LENGTH,
    )
    return target


@torch.no_grad()
def validation_loss(target: Gemma4ForCausalLM, windows: Tensor) -> float:
    """Mean loss in nats per token of [N, T] held-out windows, in the dtype of the target."""
    losses = []
    for rows in windows.split(4):
        logits = target(input_ids=rows[:, :-1], use_cache=False).logits
        losses.append(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item())
    return math.fsum(losses) / len(losses)


def save(target: Gemma4ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors (bfloat16)."""
    if tokenizer.token_to_id("<turn|>") != END_OF_TURN:
        raise ValueError(f"{folder}: this tokenizer was not made by tokenizer.py; train it again")
    target.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=[EOS, END_OF_TURN]
    )
    target.to(torch.bfloat16).save_pretrained(folder)
    write_head_lengths_as_published(folder)


def report_losses(folder: Path, mix: Mix) -> None:
    """Log the held-out losses of the saved weights, computed in float32."""
    target = Gemma4ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, stream in (("text", mix.raw), ("chat", mix.chat)):
        loss = validation_loss(target, validation_windows(stream, 32))
        log.info("validate  %s: %.3f nats per token", name, loss)
