"""transformers' whole models, as anybody loads them: what the exporter's own reading must equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Reading:
    """One pass of the target over a whole text of T tokens."""

    token_ids: list[int]
    logits: Tensor  # [T, V]
    hidden: Tensor  # [1, T, D], after the last norm
    rows: list[tuple[Tensor, Tensor]]  # keys and values of every layer that owns them


class WholeModel:
    """A target and its drafter, all their weights in memory."""

    def __init__(self, target: Path, drafter: Path | None) -> None:
        self.target = load(target)
        self.drafter = None if drafter is None else load(drafter)

    def greedy(self, prompt_ids: Sequence[int], num_tokens: int, **options: Any) -> list[int]:
        """The next `num_tokens` greedy tokens; stop tokens do not end them."""
        prompt = torch.tensor([list(prompt_ids)])
        generated = self.target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=None,
            pad_token_id=0,
            # Without them transformers 5.23 fails for models that share KV but have no per-layer
            # inputs.
            output_hidden_states=True,
            return_dict_in_generate=True,
            **options,
        )
        return [int(token_id) for token_id in generated.sequences[0, len(prompt_ids) :]]

    def assisted(self, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
        """The same by transformers' own assisted generation."""
        return self.greedy(prompt_ids, num_tokens, assistant_model=self.drafter)

    @torch.inference_mode()
    def read(self, token_ids: Sequence[int]) -> Reading:
        """Run the target over a whole text at once."""
        cache: Any = DynamicCache()  # without a configuration, so that no layer drops old rows
        out = self.target(
            input_ids=torch.tensor([list(token_ids)]),
            output_hidden_states=True,
            cache=cache,
            use_cache=True,
        )
        rows = [(layer.keys, layer.values) for layer in cache.layers]
        return Reading(list(token_ids), out.logits[0], out.hidden_states[-1], rows)

    @torch.inference_mode()
    def draft(
        self, reading: Reading, donors: dict[str, int], position: int, draft_length: int
    ) -> list[int]:
        """What the drafter proposes after the token at `position`, over the rows before it."""
        committed = {
            kind: tuple(part[:, :, :position] for part in reading.rows[layer])
            for kind, layer in donors.items()
        }
        last = torch.tensor([[reading.token_ids[position]]])
        hidden = reading.hidden[:, position - 1 : position]
        drafts = []
        for _ in range(draft_length):
            embedding = self.target.get_input_embeddings()(last)
            out = self.drafter(
                inputs_embeds=torch.cat((embedding, hidden), dim=-1),
                position_ids=torch.tensor([[position]]),
                shared_kv_states=committed,
                use_cache=False,
            )
            last, hidden = out.logits.argmax(dim=-1), out.last_hidden_state
            drafts.append(int(last))
        return drafts


def load(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    name = (config.architectures or ["Gemma4ForCausalLM"])[0]
    loaded = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", use_safetensors=True
    )
    return loaded.eval().requires_grad_(False)
