"""A decoder layer of target or drafter."""

from typing import cast

from torch import Tensor, nn

from exporter.graph.experts import Experts, Router
from exporter.graph.layers import Attention, FeedForward, Linear, RMSNorm, Step, meta_parameter
from exporter.graph.primitives import Primitives, gelu_tanh
from exporter.graph.spec import LayerSpec


class DecoderLayer(nn.Module):
    """One layer of target or drafter."""

    def __init__(
        self,
        layer: LayerSpec,
        hidden_size: int,
        per_layer_size: int,
        eps: float,
        primitives: Primitives,
    ) -> None:
        super().__init__()
        self._layer = layer
        self.self_attn = Attention(layer, hidden_size, eps, primitives)
        self.mlp = FeedForward(hidden_size, layer.intermediate_size)
        self.input_layernorm = RMSNorm(hidden_size, eps, primitives)
        self.post_attention_layernorm = RMSNorm(hidden_size, eps, primitives)
        self.pre_feedforward_layernorm = RMSNorm(hidden_size, eps, primitives)
        self.post_feedforward_layernorm = RMSNorm(hidden_size, eps, primitives)
        if layer.experts is not None:
            self.router = Router(layer.experts, hidden_size, eps, primitives)
            self.experts = Experts(layer.experts, hidden_size)
            self.post_feedforward_layernorm_1 = RMSNorm(hidden_size, eps, primitives)
            self.pre_feedforward_layernorm_2 = RMSNorm(hidden_size, eps, primitives)
            self.post_feedforward_layernorm_2 = RMSNorm(hidden_size, eps, primitives)
        if per_layer_size:
            self.per_layer_input_gate = Linear(hidden_size, per_layer_size)
            self.per_layer_projection = Linear(per_layer_size, hidden_size)
            self.post_per_layer_input_norm = RMSNorm(hidden_size, eps, primitives)
        self.layer_scalar = meta_parameter(1)

    def forward(self, x: Tensor, per_layer_input: Tensor | None, step: Step) -> Tensor:
        """x [1, T, D], per_layer_input [1, T, P] -> [1, T, D]."""
        normed = self.input_layernorm(x)
        if self._layer.owns_kv:
            self.self_attn.write(normed, step)
        return self._mix(x, normed, per_layer_input, step)

    def write(self, x: Tensor, step: Step) -> None:
        """Write the KV rows only: all that prefill needs of the last layer that owns any."""
        self.self_attn.write(self.input_layernorm(x), step)

    def after_write(self, x: Tensor, per_layer_input: Tensor | None, step: Step) -> Tensor:
        """The rest of `forward`, after `write`."""
        return self._mix(x, self.input_layernorm(x), per_layer_input, step)

    def _mix(self, x: Tensor, normed: Tensor, per_layer_input: Tensor | None, step: Step) -> Tensor:
        mixed = self.self_attn(normed, step)
        x = x + self.post_attention_layernorm(mixed)
        fed = self.mlp(self.pre_feedforward_layernorm(x))
        if self._layer.experts is not None:
            fed = self.post_feedforward_layernorm_1(fed) + self._experts(x)
        x = x + self.post_feedforward_layernorm(fed)
        if per_layer_input is not None:
            gated = gelu_tanh(self.per_layer_input_gate(x)) * per_layer_input
            x = x + self.post_per_layer_input_norm(self.per_layer_projection(gated))
        return x * self.layer_scalar

    def _experts(self, x: Tensor) -> Tensor:
        made = self.experts(self.pre_feedforward_layernorm_2(x), self.router(x))
        return cast(Tensor, self.post_feedforward_layernorm_2(made))
