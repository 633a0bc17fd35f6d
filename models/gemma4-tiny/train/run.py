"""What both training runs share: optimizers, the learning-rate schedule, checkpoints, progress."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

WARMUP = 0.02  # of the time
CHECKPOINT_EVERY_S = 180
REPORT_EVERY = 50  # steps


def optimizers(model: nn.Module, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for embeddings, norms and the centroids."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if is_matrix else others).append(parameter)
    found = [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.05),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return found


def rate(fraction: float) -> float:
    """Return the learning rate as a part of its peak: a short warm-up, then a cosine to 1 %."""
    if fraction < WARMUP:
        return max(0.01, fraction / WARMUP)
    cosine = 0.5 * (1 + math.cos(math.pi * (fraction - WARMUP) / (1 - WARMUP)))
    return 0.01 + 0.99 * min(1.0, cosine)


@dataclass
class Run:
    """A training run of a fixed time. Killed and started again, it goes on from its checkpoint."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    checkpoint: Path
    minutes: float
    step: int = 0
    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint)
        self.model.load_state_dict(state["model"])
        for optimizer, found in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(found)
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        log.info("resume    step %d, %.1f min", self.step, self.elapsed_s / 60)

    def update(self, loss: Tensor) -> None:
        """One optimizer step with the rate of the present moment."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        now = rate(self.elapsed_s / (60 * self.minutes))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * now
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def train(self, loss_of_step: Callable[[int], Tensor], tokens_per_step: int) -> None:
        """Run until the time is over. ``loss_of_step`` maps a step number to the loss."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        self.resume()
        saved_at = self.elapsed_s
        while self.elapsed_s < 60 * self.minutes:
            began = time.monotonic()
            loss = loss_of_step(self.step)
            self.update(loss)
            self.losses.append(loss.item())
            took_s = time.monotonic() - began
            # Compiling is not training: a slow first step must not eat the schedule.
            self.elapsed_s += min(took_s, 5.0)
            self.step += 1
            if self.step % REPORT_EVERY == 0:
                self.report(tokens_per_step / took_s)
            if self.elapsed_s - saved_at > CHECKPOINT_EVERY_S:
                self.save()
                saved_at = self.elapsed_s
        self.save()

    def report(self, tokens_per_s: float) -> None:
        recent = self.losses[-REPORT_EVERY:]
        log.info(
            "train     step %d, loss %.3f, %.0f tokens/s, %.1f min left",
            self.step,
            sum(recent) / len(recent),
            tokens_per_s,
            self.minutes - self.elapsed_s / 60,
        )
