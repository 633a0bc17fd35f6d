"""The original: transformers' own modules, eager and float32, which everything is compared with."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.checkpoint import TOKEN_ORDERING, DrafterCheckpoint, TargetCheckpoint
from exporter.checkpoint_names import normalised_names
from exporter.errors import ExportError

# model_type -> class. Not config.json's "architectures", which a tool may leave out or call the
# decoder without its head.
CLASSES = {
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4_assistant": "Gemma4AssistantForCausalLM",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
    "gemma4_unified_assistant": "Gemma4UnifiedAssistantForCausalLM",
}
KVStates = dict[str, tuple[Tensor, Tensor]]  # kind of layer -> keys, values [1, G, T, E]


@dataclass(frozen=True)
class Reading:
    """One pass of the target over a whole text of T tokens."""

    token_ids: list[int]
    logits: Tensor  # [T, V]
    hidden: Tensor  # [1, T, D], after the last norm
    kv_states: KVStates


class Original:
    """A target and its drafter as transformers loads them."""

    def __init__(
        self,
        model: Path,
        drafter: Path | None,
        *checkpoints: TargetCheckpoint | DrafterCheckpoint | None,
    ) -> None:
        """Load both; of a checkpoint of theirs whose tensors are computed, those.

        Raises:
            ExportError: if transformers refuses a checkpoint.
        """
        computed = {c.folder: c for c in checkpoints if c is not None and not c.is_plain}
        self._target = _load(model, computed.get(model))
        self._drafter = None if drafter is None else _load(drafter, computed.get(drafter))
        self._embed = self._target.get_input_embeddings()
        self.num_weights = sum(weight.numel() for weight in self._target.parameters())

    def greedy(self, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
        """The next `num_tokens` greedy tokens; stop tokens do not end them."""
        return self._generate(prompt_ids, num_tokens)

    def assisted(self, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
        """The same by transformers' own assisted generation."""
        return self._generate(prompt_ids, num_tokens, assistant_model=self._drafter)

    def _generate(self, prompt_ids: Sequence[int], num_tokens: int, **options: Any) -> list[int]:
        prompt = torch.tensor([list(prompt_ids)])
        generated = self._target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        return [int(token_id) for token_id in generated[0, len(prompt_ids) :]]

    def read(self, token_ids: Sequence[int]) -> Reading:
        """Run the target over a whole text at once."""
        out = self._target(
            input_ids=torch.tensor([list(token_ids)]),
            output_hidden_states=True,
            return_shared_kv_states=True,
            use_cache=False,
        )
        return Reading(list(token_ids), out.logits[0], out.hidden_states[-1], out.shared_kv_states)

    def draft(self, reading: Reading, position: int, draft_length: int) -> list[int]:
        """What the drafter proposes after the token at `position`, the last emitted one.

        As transformers' SinglePositionMultiTokenCandidateGenerator does it, over committed rows.
        """
        if self._drafter is None:
            return []
        kv_states = {
            kind: (keys[:, :, :position], values[:, :, :position])
            for kind, (keys, values) in reading.kv_states.items()
        }
        last = torch.tensor([[reading.token_ids[position]]])
        hidden = reading.hidden[:, position - 1 : position]
        drafts = []
        for _ in range(draft_length):
            out = self._drafter(
                inputs_embeds=torch.cat((self._embed(last), hidden), dim=-1),
                position_ids=torch.tensor([[position]]),
                shared_kv_states=kv_states,
                use_cache=False,
            )
            last, hidden = out.logits.argmax(dim=-1), out.last_hidden_state
            drafts.append(int(last))
        return drafts


def _load(folder: Path, computed: TargetCheckpoint | DrafterCheckpoint | None) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    name = CLASSES[config.model_type]
    with all_layers_shared(type(config.get_text_config())), _quiet(transformers):
        try:
            if computed is not None:
                return _build(getattr(transformers, name), config, computed)
            loaded = getattr(transformers, name).from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", use_safetensors=True
            )
        except (OSError, ValueError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ExportError(
                f"{folder}: transformers cannot load the original ({reason}); "
                "correct the checkpoint, it is what the export is compared with"
            ) from None
    return loaded.eval().requires_grad_(False)


def _build(model_class: Any, config: Any, checkpoint: TargetCheckpoint | DrafterCheckpoint) -> Any:
    """The model with the checkpoint's own numbers."""
    for part in (config, config.get_text_config()):
        vars(part).pop("quantization_config", None)
    config._attn_implementation = "eager"
    model = model_class(config).to(torch.float32).eval().requires_grad_(False)
    if not checkpoint.spec.tied_head:  # an adapter may have parted head and embedding
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    needed = set(checkpoint.names())
    for name, raw in normalised_names(tensors, str(checkpoint.folder)).items():
        if name in needed:
            integers = name == TOKEN_ORDERING
            stored = checkpoint.integers(name) if integers else checkpoint.tensor(name)
            tensors[raw].copy_(stored.reshape(tensors[raw].shape))
    return model


@contextlib.contextmanager
def all_layers_shared(config_class: Any) -> Iterator[None]:
    """Let transformers 5.23 build an assistant, whose layers are all shared, and its target.

    `kv_sharing_modes` raises when no layer is left to produce the KV, although an assistant is
    given it, and keeps no rows for an assistant when no layer of the target's is shared. Remove
    when Gemma4AssistantForCausalLM(config) works without this, and a target returns
    shared_kv_states.
    """
    original = config_class.kv_sharing_modes

    def modes(config: Any) -> Any:
        if config.num_kv_shared_layers == config.num_hidden_layers:
            return ["reuse"] * config.num_hidden_layers
        if not config.num_kv_shared_layers:
            last = {kind: index for index, kind in enumerate(config.layer_types)}
            return [
                "store" if last[kind] == index else None
                for index, kind in enumerate(config.layer_types)
            ]
        return original.fget(config)

    config_class.kv_sharing_modes = property(modes)
    try:
        yield
    finally:
        config_class.kv_sharing_modes = original


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No loading bar and no advice on stderr: the export shows its own progress."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
