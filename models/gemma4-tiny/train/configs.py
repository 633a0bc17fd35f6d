"""The two model configurations: Gemma 4 E2B with every feature on, a thousand times smaller."""

import json
from pathlib import Path

from transformers import Gemma4AssistantConfig, Gemma4TextConfig

from .tokenizer import BOS, EOS, PAD, VOCAB_SIZE

SLIDING, FULL = "sliding_attention", "full_attention"
HEAD_LENGTH = {"head_dim": 32, "global_head_dim": 64}
SHARED = {
    "vocab_size": VOCAB_SIZE,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "sliding_window": 128,
    "max_position_embeddings": 2048,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
    "tie_word_embeddings": True,
    "attn_implementation": "sdpa",
}
# Not trained: fixed values other than 1, so that an export that forgets them fails.
LAYER_SCALARS = (0.5, 0.625, 0.75, 0.875, 0.9375, 1.25)


def target_config() -> Gemma4TextConfig:
    """PLE, KV shared by the last three layers, double-wide MLP there, both kinds of attention."""
    return Gemma4TextConfig(
        **SHARED,
        **HEAD_LENGTH,
        hidden_size=192,
        intermediate_size=640,
        num_hidden_layers=6,
        layer_types=[SLIDING, SLIDING, FULL] * 2,
        num_kv_shared_layers=3,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=32,
        vocab_size_per_layer_input=VOCAB_SIZE,
        final_logit_softcapping=30.0,
    )


def drafter_config() -> Gemma4AssistantConfig:
    """Four layers without keys and values of their own, and the centroid head."""
    text_config = Gemma4TextConfig(
        **SHARED,
        **HEAD_LENGTH,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        layer_types=[SLIDING, SLIDING, SLIDING, FULL],
        num_kv_shared_layers=4,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=0,
    )
    return Gemma4AssistantConfig(
        text_config=text_config,
        backbone_hidden_size=target_config().hidden_size,
        use_ordered_embeddings=True,
        num_centroids=128,
        centroid_intermediate_top_k=16,
        tie_word_embeddings=True,
    )


def write_head_lengths_as_published(folder: Path) -> None:
    """Rewrite config.json to name ``global_head_dim``, as Google's checkpoints do.

    transformers 5.23.0 reads that name, but writes ``per_layer_config`` in its place.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    text_config = config.get("text_config", config)
    text_config.pop("per_layer_config", None)
    text_config.update(HEAD_LENGTH)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
