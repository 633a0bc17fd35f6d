"""The checkpoint's text side: tokenizer, chat template, where a text begins and where it ends."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import ExportError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """What a runtime needs to turn text into tokens and to know when an answer ends."""

    folder: Path  # where the tokenizer is
    tokenizer: Path  # tokenizer.json
    chat_template: str | None  # Jinja source
    bos_token_id: int
    stop_token_ids: tuple[int, ...]
    tokenizer_config: Mapping[str, Any]
    generation: Mapping[str, Any]  # generation_config.json
    pad_token_id: int | None


def read_text_files(folder: Path, adapter: Path | None = None) -> TextFiles:
    """Read the text side of a target checkpoint; an adapter's own tokenizer and template win.

    Raises:
        ExportError: if the tokenizer or a token id is missing.
    """
    source = folder if adapter is None else _text_folder(folder, adapter)
    tokenizer = source / "tokenizer.json"
    if not tokenizer.is_file():
        raise ExportError(
            f"{folder}: no tokenizer.json; add the one of the model this was tuned from"
        )
    config = _read_json(folder / "config.json")
    text_config: Mapping[str, Any] = {**config, **config.get("text_config", {})}
    generation = _read_json(folder / "generation_config.json")
    bos_token_id = text_config.get("bos_token_id")
    if not isinstance(bos_token_id, int):
        raise ExportError(
            f"{folder}/config.json: bos_token_id is {bos_token_id!r}, needed is a token id"
        )
    tokenizer_config = _read_json(source / "tokenizer_config.json")
    return TextFiles(
        folder=source,
        tokenizer=tokenizer,
        chat_template=_chat_template(source, tokenizer_config),
        bos_token_id=bos_token_id,
        stop_token_ids=_stop_ids(folder, config, text_config, generation),
        tokenizer_config=tokenizer_config,
        generation=generation,
        pad_token_id=text_config.get("pad_token_id"),
    )


def _text_folder(folder: Path, adapter: Path) -> Path:
    """Trainers save the tokenizer with the adapter; one without its template is of no use."""
    if not (adapter / "tokenizer.json").is_file():
        return folder
    template = _chat_template(adapter, _read_json(adapter / "tokenizer_config.json"))
    return folder if template is None else adapter


def _stop_ids(
    folder: Path,
    config: Mapping[str, Any],
    text_config: Mapping[str, Any],
    generation: Mapping[str, Any],
) -> tuple[int, ...]:
    found = None
    for source in (generation, config, text_config):
        if found is None:
            found = source.get("eos_token_id")
    ids = [found] if isinstance(found, int) else found
    if not isinstance(ids, list) or not ids or not all(isinstance(item, int) for item in ids):
        raise ExportError(
            f"{folder}: eos_token_id is {found!r} in generation_config.json and config.json, "
            "needed are token ids; add them, or generation never stops"
        )
    return tuple(ids)


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    text = (
        file.read_text(encoding="utf-8")
        if file.is_file()
        else tokenizer_config.get("chat_template")
    )
    # The tag marks what to train on; it renders nothing, and engines other than transformers' do
    # not know it.
    return None if text is None else re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", text)


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: not valid JSON ({error}); correct the file") from None
    if not isinstance(values, dict):
        raise ExportError(f"{path}: not a JSON object; correct the file")
    return values


class OriginalTokenizer:
    """transformers' tokenizer of a checkpoint: what the bundle's own must equal."""

    def __init__(self, folder: Path) -> None:
        import transformers

        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ExportError(
                f"{folder}: transformers cannot load the tokenizer ({reason}); correct it"
            ) from None

    def encode(self, text: str, bos_token_id: int) -> list[int]:
        """Plain text, begun with the beginning-of-sequence token."""
        ids = [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]
        return ids if ids[:1] == [bos_token_id] else [bos_token_id, *ids]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation, up to where the model's next turn begins."""
        rendered = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False
        )
        return [int(token) for token in self._tokenizer.encode(rendered, add_special_tokens=False)]
