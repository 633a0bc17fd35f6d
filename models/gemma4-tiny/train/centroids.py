"""The centroid head: which clusters of tokens the drafter scores, instead of all tokens."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM

from .train_drafter import NUM_STEPS, DrafterMix, ask, unroll

log = logging.getLogger(__name__)

NUM_ROUNDS = 8
NUM_STEPS_TO_TRAIN = 90
LR = 0.01


def balanced_clusters(rows: Tensor, num_clusters: int) -> Tensor:
    """Cluster [V, d] rows by k-means into clusters of equal size.

    Returns:
        [V] row numbers, cluster after cluster: the ``token_ordering`` of the assistant.
    """
    size = len(rows) // num_clusters
    rows = F.normalize(rows, dim=-1)
    random = torch.Generator().manual_seed(0)
    centres = rows[torch.randperm(len(rows), generator=random)[:num_clusters]]
    for _ in range(NUM_ROUNDS):
        members = fill(rows @ centres.T, size)
        centres = F.normalize(torch.stack([rows[found].mean(dim=0) for found in members]), dim=-1)
    return torch.tensor(members).flatten()


def fill(similarity: Tensor, size: int) -> list[list[int]]:
    """Give each row of [V, N] to the most similar cluster with room left, closest pairs first."""
    num_clusters = similarity.shape[1]
    members: list[list[int]] = [[] for _ in range(num_clusters)]
    placed = [False] * len(similarity)
    for pair in similarity.flatten().argsort(descending=True).tolist():
        row, cluster = divmod(pair, num_clusters)
        if not placed[row] and len(members[cluster]) < size:
            members[cluster].append(row)
            placed[row] = True
    return members


def cluster_tokens(drafter: Gemma4AssistantForCausalLM) -> None:
    """Set the drafter's token ordering and begin its centroids at the cluster means."""
    head = drafter.masked_embedding
    rows = drafter.lm_head.weight.detach()
    ordering = balanced_clusters(rows, head.num_centroids)
    with torch.no_grad():
        head.token_ordering.copy_(ordering)
        head.centroids.weight.copy_(rows[ordering].unflatten(0, (head.num_centroids, -1)).mean(1))


def cluster_of_token(drafter: Gemma4AssistantForCausalLM) -> Tensor:
    """Return [V] the cluster number of each token."""
    head = drafter.masked_embedding
    clusters = torch.empty(head.vocab_size, dtype=torch.long)
    numbers = torch.arange(head.num_centroids).repeat_interleave(head.vocab_size_per_centroid)
    clusters[head.token_ordering] = numbers
    return clusters


def train_centroids(
    target: Gemma4ForCausalLM, drafter: Gemma4AssistantForCausalLM, mix: DrafterMix
) -> float:
    """Train the centroids alone: each hidden state must choose its best token's cluster.

    Returns:
        recall: how often that cluster is among the chosen ones, over the last fifth of the steps.
    """
    head = drafter.masked_embedding
    clusters = cluster_of_token(drafter)
    optimizer = torch.optim.AdamW(head.centroids.parameters(), lr=LR, weight_decay=0.0)
    recalls = []
    for step in range(NUM_STEPS_TO_TRAIN):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            steps = unroll(drafter, ask(target, mix.batch(step)))
            hidden = torch.cat([rows[:, 1:-NUM_STEPS].flatten(0, 1) for rows in steps])
            wanted = clusters[drafter.lm_head(hidden).argmax(dim=-1)]
        scores = head.centroids(hidden.float())
        loss = F.cross_entropy(scores, wanted)
        optimizer.param_groups[0]["lr"] = LR * (1 - step / NUM_STEPS_TO_TRAIN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        chosen = scores.topk(head.centroid_intermediate_top_k, dim=-1).indices
        recalls.append((chosen == wanted[:, None]).any(dim=-1).float().mean().item())
        if (step + 1) % 30 == 0:
            log.info("centroids step %d, loss %.3f, recall %.4f", step + 1, loss, recalls[-1])
    last = recalls[-NUM_STEPS_TO_TRAIN // 5 :]
    return sum(last) / len(last)
