"""Experts beside the dense MLP (26B-A4B): a router chooses a few of many for every token."""

import torch
from torch import Tensor, nn

from exporter.graph.layers import Linear, RMSNorm, meta_parameter
from exporter.graph.primitives import Primitives, gelu_tanh
from exporter.graph.spec import ExpertSpec

_STACKS = (".experts.gate_up_proj", ".experts.down_proj")
Choice = tuple[Tensor, Tensor]  # experts [T, k] integers, in any order; their shares [T, k]


def is_stack(name: str) -> bool:
    """Whether a tensor holds the same matrix of every expert: [num_experts, O, I]."""
    return name.endswith(_STACKS)


class Router(nn.Module):
    """x [1, T, D] -> the experts of every token and their weights."""

    def __init__(
        self, spec: ExpertSpec, hidden_size: int, eps: float, primitives: Primitives
    ) -> None:
        super().__init__()
        self._top_k = spec.top_k
        self._factor = hidden_size**-0.5
        self._top_k_indices = primitives.top_k_indices
        self.norm = RMSNorm(hidden_size, eps, primitives, scaled=False)
        self.scale = meta_parameter(hidden_size)
        self.proj = Linear(hidden_size, spec.num_experts)
        self.per_expert_scale = meta_parameter(spec.num_experts)

    def forward(self, x: Tensor) -> Choice:
        scores = self.proj(self.norm(x)[0] * self.scale * self._factor)  # [T, N]
        probabilities = torch.softmax(scores, dim=-1)
        chosen = self._top_k_indices(probabilities, self._top_k)
        shares = torch.gather(probabilities, 1, chosen.long())  # [T, k]
        shares = shares / shares.sum(dim=-1, keepdim=True)
        return chosen, shares * self.per_expert_scale[chosen]


class Experts(nn.Module):
    """Gated MLPs in two stacks of matrices.

    A lowering replaces this module by its own: here every token gets a copy of its experts'
    matrices.
    """

    def __init__(self, spec: ExpertSpec, hidden_size: int) -> None:
        super().__init__()
        self.gate_up_proj = meta_parameter(
            spec.num_experts, 2 * spec.intermediate_size, hidden_size
        )
        self.down_proj = meta_parameter(spec.num_experts, hidden_size, spec.intermediate_size)

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """x [1, T, D] -> [1, T, D], the weighted sum of each token's experts."""
        chosen, shares = choice
        tokens = x.reshape(-1, 1, x.shape[-1], 1)  # [T, 1, D, 1]
        gate, up = (self.gate_up_proj[chosen] @ tokens).chunk(2, dim=2)  # [T, k, I, 1] each
        made = (self.down_proj[chosen] @ (gelu_tanh(gate) * up)).squeeze(-1)  # [T, k, D]
        return (made * shares.unsqueeze(-1)).sum(dim=1).unsqueeze(0)
