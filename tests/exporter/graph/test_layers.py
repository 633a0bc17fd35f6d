"""Parts against transformers' own, at the published sizes."""

import pytest
import torch
from transformers import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import (
    Gemma4TextRotaryEmbedding,
    apply_rotary_pos_emb,
)

from exporter.graph.layers import Rope, rotate
from exporter.graph.primitives import gelu_tanh
from exporter.graph.spec import KINDS, RopeSpec
from tests.exporter.graph.tensor_cache import grouped_attention

# The published numbers: head sizes 256 and 512, a quarter of the full layers' frequencies turn.
ROPES = {
    "sliding_attention": RopeSpec(theta=10_000.0, head_dim=256),
    "full_attention": RopeSpec(theta=1_000_000.0, head_dim=512, partial_rotary_factor=0.25),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rotation_is_the_originals_bit_for_bit_up_to_the_longest_context(kind):
    positions = torch.tensor([0, 1, 511, 4096, 131_071])
    original = Gemma4TextRotaryEmbedding(Gemma4TextConfig(head_dim=256, global_head_dim=512))
    x = torch.randn(1, len(positions), 3, ROPES[kind].head_dim, generator=torch.manual_seed(1))
    cos, sin = original(x, positions[None], kind)
    wanted = apply_rotary_pos_emb(x, cos, sin, unsqueeze_dim=2)
    assert torch.equal(rotate(x, Rope(ROPES[kind])(positions.int())), wanted)


def test_a_factor_divides_the_frequencies():
    spec = RopeSpec(theta=100.0, head_dim=8, partial_rotary_factor=0.5, factor=4.0)
    cos, _ = Rope(spec)(torch.tensor([8]))
    whole, _ = Rope(RopeSpec(theta=100.0, head_dim=8, partial_rotary_factor=0.5))(torch.tensor([2]))
    torch.testing.assert_close(cos, whole)


def test_gelu_is_the_tanh_form():
    x = torch.linspace(-8, 8, 4001)
    wanted = torch.nn.functional.gelu(x, approximate="tanh")
    assert (gelu_tanh(x) - wanted).abs().max() < 1e-6


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (8, 2), (4, 4)])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_grouped_attention_is_attention(heads, kv_heads, num_tokens):
    generator = torch.manual_seed(1)
    queries = torch.randn(1, heads, num_tokens, 16, generator=generator)
    keys, values = torch.randn(2, 1, kv_heads, 10, 16, generator=generator)
    mask = torch.randn(1, 1, num_tokens, 10, generator=generator)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=1.0, enable_gqa=True
    )
    found = grouped_attention(queries, keys, values.transpose(2, 3), mask)
    torch.testing.assert_close(found, wanted)
