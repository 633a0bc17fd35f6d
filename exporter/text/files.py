"""Read a checkpoint's tokenizer, chat template, and beginning and stop tokens."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from exporter.checkpoint.files import read_json
from exporter.checkpoint.generation import read_generation, report_ignored
from exporter.errors import ExportError
from exporter.original.vendor import load_tokenizer
from runtime_py.bundle.manifest import TokenEntry
from runtime_py.bundle.tokenizer import LibraryError, no_panic
from runtime_py.terminal.printable import shown

logger = logging.getLogger(__name__)

MAX_STOP_IDS = 64  # the manifest's limit


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """What a runtime needs to tokenize text and to know when an answer ends."""

    folder: Path  # where the tokenizer is
    tokenizer: Path  # tokenizer.json
    chat_template: str | None  # Jinja source
    bos_token_id: int
    stop_token_ids: tuple[int, ...]
    tokenizer_config: Mapping[str, Any]
    generation: Mapping[str, Any]  # generation_config.json, without what is null
    pad_token_id: int | None


def read_text_files(folder: Path, adapter: Path | None = None) -> TextFiles:
    """Read a target checkpoint's text files; an adapter's own tokenizer and template replace them.

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
    nested = config.get("text_config")
    text_config: Mapping[str, Any] = {**config, **(nested if isinstance(nested, dict) else {})}
    generation = read_generation(folder, config)
    report_ignored(generation, folder)
    bos_token_id = text_config.get("bos_token_id")
    if not _is_token(bos_token_id, text_config):
        raise ExportError(
            f"{folder}/config.json: bos_token_id is {shown(repr(bos_token_id))}, needed is a token "
            "id of the vocabulary; get the checkpoint's own config.json"
        )
    pad_token_id = text_config.get("pad_token_id")
    tokenizer_config = _read_json(source / "tokenizer_config.json")
    return TextFiles(
        folder=source,
        tokenizer=tokenizer,
        chat_template=_chat_template(source, tokenizer_config),
        bos_token_id=bos_token_id,
        stop_token_ids=_stop_ids(folder, config, text_config, generation),
        tokenizer_config=tokenizer_config,
        generation=generation,
        # Nothing is padded here, so an id that is no token, such as -1, counts as none.
        pad_token_id=pad_token_id if _is_token(pad_token_id, text_config) else None,
    )


def token_entry(text: TextFiles, special_tokens: Mapping[str, str]) -> TokenEntry:
    """The manifest's `tokens`, with the file names of the bundle."""
    return TokenEntry(
        tokenizer="tokenizer.json",
        chat_template=None if text.chat_template is None else "chat_template.jinja",
        bos_token_id=text.bos_token_id,
        stop_token_ids=text.stop_token_ids,
        special_tokens=dict(special_tokens),
    )


def _text_folder(folder: Path, adapter: Path) -> Path:
    """The adapter's folder if it has a tokenizer and a template, which trainers save with it."""
    if not (adapter / "tokenizer.json").is_file():
        return folder
    template = _chat_template(adapter, _read_json(adapter / "tokenizer_config.json"))
    return folder if template is None else adapter


def _is_token(value: object, text_config: Mapping[str, Any]) -> TypeGuard[int]:
    """Whether `value` is a token id of the vocabulary, whose size read_checkpoint checked."""
    vocab_size = text_config.get("vocab_size", 2**31)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size


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
    ids = found if isinstance(found, list) else [found]
    if not 0 < len(ids) <= MAX_STOP_IDS or not all(_is_token(item, text_config) for item in ids):
        raise ExportError(
            f"{folder}: eos_token_id is {shown(repr(found))} in generation_config.json and "
            "config.json, needed are token ids; add them, or generation never stops"
        )
    return tuple(ids)


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    text: object
    if file.is_file():
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(
                f"{file}: cannot be read as text ({shown(error)}); get the checkpoint's own"
            ) from None
    else:
        text = tokenizer_config.get("chat_template")
        if isinstance(text, list):
            text = _default_template(text)
        if text is None:  # old multimodal processors keep it there
            text = _read_json(folder / "chat_template.json").get("chat_template")
    if text is not None and not isinstance(text, str):
        raise ExportError(
            f"{folder}/tokenizer_config.json: chat_template is {shown(repr(text))}, needed is one "
            "text; put it into chat_template.jinja"
        )
    # The "generation" tag marks text to train on, and only transformers knows it. Replace it by one
    # that every engine knows and that trims the same white space.
    for tag, same in (("generation", "if true"), ("endgeneration", "endif")):
        text = text and re.sub(rf"\{{%([-+]?)\s*{tag}\s*([-+]?)%\}}", rf"{{%\1 {same} \2%}}", text)
    return text


def _default_template(templates: Sequence[object]) -> object:
    """The template named "default", which transformers uses; without one, the list itself."""
    for item in templates:
        if isinstance(item, dict) and item.get("name") == "default":
            return item.get("template")
    return templates


def _read_json(path: Path) -> Mapping[str, Any]:
    """The object in a file; empty if there is no such file."""
    return read_json(path) if path.is_file() else {}


class OriginalTokenizer:
    """transformers' tokenizer of a checkpoint, whose tokens the bundle's must equal."""

    def __init__(self, folder: Path) -> None:
        try:
            with no_panic():
                self._tokenizer = load_tokenizer(folder)
        except LibraryError as error:
            raise ExportError(
                f"{folder}: transformers cannot load the tokenizer ({shown(error, 300)}); "
                "correct it"
            ) from None
        self._folder = folder

    @property
    def special_tokens(self) -> dict[str, str]:
        """Name, such as "eos_token", -> text, for the chat template."""
        return {str(name): str(text) for name, text in self._tokenizer.special_tokens_map.items()}

    @property
    def added_tokens(self) -> dict[str, int]:
        """Text -> id of every token that was added to the vocabulary."""
        return {str(text): int(item) for text, item in self._tokenizer.get_added_vocab().items()}

    def encode(self, text: str, bos_token_id: int) -> list[int]:
        """The tokens of plain text, with the beginning-of-sequence token first."""
        ids = [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]
        return ids if ids[:1] == [bos_token_id] else [bos_token_id, *ids]

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], template: str | None = None
    ) -> list[int]:
        """The tokens of a conversation, up to where the model's next turn begins.

        Args:
            messages: role and content of each.
            template: used if the tokenizer has none of its own.
        """
        own = self._tokenizer.chat_template
        try:
            with no_panic():
                rendered = self._tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=None if own else template,
                    add_generation_prompt=True,
                    tokenize=False,
                )
                ids = self._tokenizer.encode(rendered, add_special_tokens=False)
        except LibraryError as error:  # a template is a program and can raise anything
            raise ExportError(
                f"{self._folder}: the chat template fails ({shown(error, 300)}); correct it, or "
                "remove it"
            ) from None
        return [int(token) for token in ids]
