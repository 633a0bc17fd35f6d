"""Small random Gemma 4 models from transformers, and the checkpoints they are saved as."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4UnifiedAssistantConfig,
    Gemma4UnifiedAssistantForCausalLM,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForCausalLM,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
)

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What makes one variant of Gemma 4 differ from another."""

    layers: str = "ssf" * 2  # s: sliding, f: full
    vocab_size: int = 64
    hidden_size: int = 32
    intermediate_size: int = 48
    heads: int = 4
    kv_heads: int = 2
    global_kv_heads: int | None = None  # set: attention_k_eq_v
    head_dim: int = 8
    global_head_dim: int = 16
    window: int = 5
    shared: int = 0
    doubled: bool = False  # use_double_wide_mlp
    per_layer: int = 0  # PLE width
    softcap: float | None = 30.0
    eps: float = 1e-6  # of every norm; a large one shows what is scaled where
    tied: bool = True
    unified: bool = False  # the 12B's classes
    experts: int = 0  # beside every layer's MLP
    active_experts: int = 2  # per token
    expert_size: int = 12
    drafter_layers: str = "sssf"
    drafter_hidden: int = 16
    centroids: int = 0  # 0: a dense drafter head
    top_k: int = 2

    @property
    def layer_types(self) -> list[str]:
        return [FULL if kind == "f" else SLIDING for kind in self.layers]


# One of each published kind, small.
E2B = Shape(
    layers="ssf" * 2, kv_heads=1, shared=3, doubled=True, per_layer=8, centroids=16, top_k=3
)
E4B = Shape(layers="sssf" * 2, kv_heads=2, shared=4, per_layer=8, centroids=8, top_k=2, eps=1e-2)
UNIFIED_12B = Shape(layers="sssssf", kv_heads=2, global_kv_heads=1, unified=True)
DENSE_31B = Shape(layers="ssf" * 2, heads=8, kv_heads=4, global_kv_heads=2)
A4B_26B = Shape(
    layers="ssf" * 2, kv_heads=2, global_kv_heads=1, experts=8, active_experts=3, eps=1e-2
)
UNTIED = Shape(layers="sf" * 3, kv_heads=4, softcap=None, tied=False, per_layer=4)


def random_shape(seed: int) -> Shape:
    """Any combination of features transformers can build."""
    draw = random.Random(seed)
    layers = "".join(draw.choice("sssf") for _ in range(draw.randint(1, 4)))
    # Both kinds come before any shared layer, and the last layer is full.
    shared = "".join(draw.choice("sf") for _ in range(draw.randint(0, 3)))
    own = "".join(draw.sample("sf", 2)) + layers
    all_layers = own + shared
    all_layers = all_layers[:-1] + "f" if len(shared) else own + "f"
    heads = draw.choice([2, 4, 8])
    divisors = [n for n in (1, 2, 4) if heads % n == 0]
    unified = draw.random() < 0.3
    return Shape(
        layers=all_layers,
        vocab_size=draw.choice([48, 96]),
        hidden_size=draw.choice([16, 24, 40]),
        intermediate_size=draw.choice([20, 48]),
        heads=heads,
        kv_heads=draw.choice(divisors),
        global_kv_heads=draw.choice([None, *divisors]),
        head_dim=draw.choice([4, 8]),
        global_head_dim=draw.choice([8, 16, 24]),
        window=draw.choice([2, 3, 6]),
        shared=len(shared),
        doubled=draw.random() < 0.5,
        per_layer=0 if unified else draw.choice([0, 4, 6]),
        softcap=draw.choice([None, 30.0, 5.0]),
        eps=draw.choice([1e-6, 1e-2]),
        tied=draw.random() < 0.7,
        unified=unified,
        drafter_layers=draw.choice(["sssf", "sf", "ssf"]),
        drafter_hidden=draw.choice([8, 24]),
        centroids=draw.choice([0, 6, 12]),
        top_k=draw.choice([1, 4]),
        experts=0 if unified else draw.choice([0, 0, 5, 8]),
        active_experts=draw.choice([1, 4]),
    )


def target_model(shape: Shape, seed: int, multimodal: bool = False) -> Any:
    """A target with random weights: a text model, or one in its multimodal wrapper."""
    text = text_config(shape)
    torch.manual_seed(seed)
    if multimodal:
        outer = Gemma4UnifiedConfig if shape.unified else Gemma4Config
        config = outer(
            text_config=text,
            vision_config=None,
            audio_config=None,
            tie_word_embeddings=shape.tied,
        )
        whole = (
            Gemma4UnifiedForConditionalGeneration
            if shape.unified
            else Gemma4ForConditionalGeneration
        )
        return randomised(whole(config), seed)
    causal = Gemma4UnifiedForCausalLM if shape.unified else Gemma4ForCausalLM
    return randomised(causal(text), seed)


def drafter_model(shape: Shape, seed: int) -> Any:
    """A drafter for targets of this shape, with random weights."""
    kinds = [FULL if kind == "f" else SLIDING for kind in shape.drafter_layers]
    text = text_config(
        dataclasses.replace(
            shape,
            layers=shape.drafter_layers,
            hidden_size=shape.drafter_hidden,
            shared=len(kinds),
            doubled=False,
            per_layer=0,
            softcap=None,
            experts=0,
        ),
        vocab_size_per_layer_input=0,
    )
    outer = Gemma4UnifiedAssistantConfig if shape.unified else Gemma4AssistantConfig
    config = outer(
        text_config=text,
        backbone_hidden_size=shape.hidden_size,
        use_ordered_embeddings=bool(shape.centroids),
        num_centroids=shape.centroids or 2048,
        centroid_intermediate_top_k=shape.top_k,
        tie_word_embeddings=shape.tied,
    )
    model_class = Gemma4UnifiedAssistantForCausalLM if shape.unified else Gemma4AssistantForCausalLM
    torch.manual_seed(seed)
    model = randomised(model_class(config), seed)
    if shape.centroids:
        generator = torch.Generator().manual_seed(seed)
        ordering = torch.randperm(shape.vocab_size, generator=generator)
        model.masked_embedding.token_ordering.copy_(ordering)
    return model


def save(model: Any, folder: Path, max_shard_size: str = "1GB") -> Path:
    """Write config.json and safetensors, one file or shards."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def save_pair(shape: Shape, seed: int, folder: Path) -> tuple[Path, Path]:
    """A target and its drafter as checkpoints: (target folder, drafter folder)."""
    target = save(target_model(shape, seed), folder / "target")
    return target, save(drafter_model(shape, seed + 1), folder / "drafter")


def text_config(shape: Shape, **more: Any) -> Any:
    """The text configuration of a target (or, with other numbers, of a drafter)."""
    config_class = Gemma4UnifiedTextConfig if shape.unified else Gemma4TextConfig
    if not shape.unified:
        more = {
            "hidden_size_per_layer_input": shape.per_layer,
            "vocab_size_per_layer_input": shape.vocab_size,
            **_expert_numbers(shape),
            **more,
        }
    else:
        more.pop("vocab_size_per_layer_input", None)
    return config_class(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=len(shape.layers),
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        num_global_key_value_heads=shape.global_kv_heads,
        attention_k_eq_v=shape.global_kv_heads is not None,
        head_dim=shape.head_dim,
        global_head_dim=shape.global_head_dim,
        layer_types=shape.layer_types,
        sliding_window=shape.window,
        num_kv_shared_layers=shape.shared,
        use_double_wide_mlp=shape.doubled,
        final_logit_softcapping=shape.softcap,
        rms_norm_eps=shape.eps,
        tie_word_embeddings=shape.tied,
        **more,
    )


def _expert_numbers(shape: Shape) -> dict[str, Any]:
    if not shape.experts:
        return {}
    return {
        "enable_moe_block": True,
        "num_experts": shape.experts,
        "top_k_experts": shape.active_experts,
        "moe_intermediate_size": shape.expert_size,
    }


def randomised(model: Any, seed: int) -> Any:
    """Numbers that tell a wrong graph from a right one.

    A fresh model has norms and layer scalars of 1 and nearly uniform attention, which hides
    most mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("layer_scalar"):
                tensor.copy_(0.8 + 0.1 * noise)
            elif name.endswith(("norm.weight", "router.scale")) or "layernorm" in name:
                tensor.copy_(1.0 + 0.3 * noise)
            elif name.endswith("embed_tokens.weight") or name.endswith("lm_head.weight"):
                tensor.copy_(noise)
            elif name.endswith("per_expert_scale"):
                tensor.copy_(1.0 + 0.5 * noise)
            elif name.endswith("router.proj.weight"):
                # What it reads is divided by sqrt(D): it takes large numbers to prefer anyone.
                tensor.copy_(noise * 1.5)
            elif name.endswith((".weight", "_proj")) and tensor.dim() >= 2:
                tensor.copy_(noise * 1.5 / tensor.shape[-1] ** 0.5)
    return model.eval()
