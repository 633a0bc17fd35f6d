"""Gemma 4's assistant in transformers: the guard it needs, and its draft steps."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig

KeysValues = dict[str, tuple[Tensor, Tensor]]  # by layer type, each [B, G, C, E]


def allow_assistants() -> None:
    """Let transformers build a model in which every layer reads shared keys and values.

    transformers 5.23.0 raises "The set of layer types producing a cache is different…" from
    Gemma4TextConfig.kv_sharing_modes for each such model, hence for every assistant
    (models/gemma4/configuration_gemma4.py). Remove this when a release builds one without it.
    """
    original = Gemma4TextConfig.kv_sharing_modes.fget
    if getattr(original, "allows_assistants", False):
        return

    def kv_sharing_modes(self: Gemma4TextConfig) -> list[str | None]:
        if self.num_kv_shared_layers == self.num_hidden_layers:
            return ["reuse"] * self.num_hidden_layers
        return original(self)

    kv_sharing_modes.allows_assistants = True
    Gemma4TextConfig.kv_sharing_modes = property(kv_sharing_modes)


def draft(
    target: Gemma4ForCausalLM,
    drafter: Gemma4AssistantForCausalLM,
    tokens: Sequence[int],
    hidden: Tensor,
    committed: KeysValues,
    draft_length: int,
) -> list[int]:
    """Draft ``draft_length`` tokens after ``tokens``, as transformers' assisted generation does.

    Args:
        tokens: prompt and emitted tokens; the last of them is not in the KV buffer yet.
        hidden: [1, 1, D] target's last hidden state where the last token was predicted.
        committed: the target's keys and values of all tokens but the last.

    Source: transformers, SinglePositionMultiTokenCandidateGenerator. It differs in one thing:
    after a refused draft its keys and values still hold one row of that draft.
    """
    position = torch.tensor([[len(tokens) - 1]])
    last = torch.tensor([[tokens[-1]]])
    drafts = []
    for _ in range(draft_length):
        embedding = target.get_input_embeddings()(last)
        step = drafter(
            inputs_embeds=torch.cat([embedding, hidden], dim=-1),
            position_ids=position,
            shared_kv_states=committed,
        )
        last, hidden = step.logits.argmax(dim=-1), step.last_hidden_state
        drafts.append(int(last))
    return drafts
