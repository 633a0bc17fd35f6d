"""The fence around transformers: the only module that imports it, with all private parts in use.

pyproject.toml pins the release. tests/exporter/original/test_vendor.py compares what stands here
with transformers' public behaviour.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from exporter.pins import check_pins
from exporter.quiet import TORCHAO, only_errors

PACKAGES = ("transformers", "torch")
# model_type -> class. Not config.json's "architectures", which a tool may leave out or call the
# decoder without its head.
CLASSES = {
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4_assistant": "Gemma4AssistantForCausalLM",
    "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
    "gemma4_unified_assistant": "Gemma4UnifiedAssistantForCausalLM",
}
ROOM = 64  # KV rows allocated at once


def check() -> None:
    """Raise ExportError unless the installed release is the pinned one."""
    check_pins("recording the original", PACKAGES)


def skeleton(folder: Path, text_only: bool) -> Any:
    """Build the model of a folder's config.json on the meta device: shapes without weights.

    What is computed and not read, the rotary embedding, is real.

    Args:
        folder: the checkpoint.
        text_only: only the decoder and its head, of a model of several modalities.
    """
    with _quiet():
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text_config = config.get_text_config()
        wanted = text_config if text_only else config
        with torch.device("meta"):
            built: Any = getattr(transformers, CLASSES[wanted.model_type])._from_config(
                wanted,
                attn_implementation="eager",
                # The default, torch's grouped_mm, takes rows of a multiple of 16 bytes only.
                experts_implementation="eager",
                dtype=torch.float32,
            )
        rotary = built.model.rotary_emb
        built.model.rotary_emb = type(rotary)(text_config)
    return built.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a checkpoint; raises whatever transformers raises."""
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """transformers' layer that keeps all rows, but appends in place.

    Its own concatenates: it copies every row for every token, each time into a slightly larger
    block, and the holes left behind grow to hundreds of megabytes.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = [states[:, :, :0] for states in (key_states, value_states)]
        start = self.get_seq_length()
        stop = start + key_states.shape[2]
        for index, states in enumerate((key_states, value_states)):
            if self._rooms[index].shape[2] < stop:
                self._rooms[index] = _enlarged(self._rooms[index], stop + ROOM)
            self._rooms[index][:, :, start:stop] = states
        self.keys, self.values = (room[:, :, :stop] for room in self._rooms)
        return self.keys, self.values


def growing_cache() -> Cache:
    """A cache for any number of layers; none drops rows that have left a window."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def _enlarged(rows: Tensor, length: int) -> Tensor:
    larger = rows.new_zeros((*rows.shape[:2], length, rows.shape[3]))
    larger[:, :, : rows.shape[2]] = rows
    return larger


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No loading bar and no advice on stderr: the export shows its own progress."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with only_errors(*TORCHAO):
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
