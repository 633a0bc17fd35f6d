"""Text to tokens and back, and the chat template, from the bundle's own files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from tokenizers import Tokenizer as HfTokenizer

from runtime_py.errors import RunError
from runtime_py.manifest import Manifest, bundle_path

Message = Mapping[str, str]  # {"role": "user" | "assistant" | "system", "content": text}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A bundle's tokenizer with its chat template."""

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        path = bundle_path(bundle, manifest.tokens.tokenizer)
        try:
            self._tokenizer = HfTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for a bad file
            raise RunError(f"{path}: not a tokenizer file ({error}); export again") from None
        self._bos_token_id = manifest.tokens.bos_token_id
        self._template: jinja2.Template | None = None
        if manifest.tokens.chat_template is not None:
            template_path = bundle_path(bundle, manifest.tokens.chat_template)
            self._template = _compile(template_path)

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text, begun with the beginning-of-sequence token."""
        token_ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if self._bos_token_id is not None and token_ids[:1] != [self._bos_token_id]:
            return [self._bos_token_id, *token_ids]
        return token_ids

    def encode_chat(self, messages: Iterable[Message]) -> list[int]:
        """The tokens of a conversation, up to where the model's next turn begins."""
        encoding = self._tokenizer.encode(self.render_chat(messages), add_special_tokens=False)
        return list(encoding.ids)

    def render_chat(self, messages: Iterable[Message]) -> str:
        """The text of a conversation, with the model's next turn opened.

        Raises:
            RunError: if the bundle has no chat template, or it refuses these messages.
        """
        if self._template is None:
            raise RunError("this bundle has no chat template; use gemma-run generate --raw")
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=True,
                bos_token=self._text_of(self._bos_token_id),
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RunError(f"the bundle's chat template failed: {error}") from None

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text, without the control tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def text_after_bos(self, token_ids: Sequence[int]) -> str:
        """Text with its control tokens written out, but for the first, the beginning."""
        kept = token_ids[1:] if token_ids[:1] == [self._bos_token_id] else token_ids
        return str(self._tokenizer.decode(list(kept), skip_special_tokens=False))

    def _text_of(self, token_id: int | None) -> str:
        return "" if token_id is None else (self._tokenizer.id_to_token(token_id) or "")


class TextStream:
    """Turns tokens into text as they come, never splitting a character.

    A token may end in the middle of a UTF-8 sequence, so text is held back while it ends in a
    replacement character. Only a short tail of tokens is decoded again for each one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tail: list[int] = []  # tokens whose text is context for the next
        self._num_shown = 0  # characters of the tail's text already given

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens add."""
        self._tail += token_ids
        text = self._tokenizer.decode(self._tail)
        if text.endswith(_REPLACEMENT):
            return ""
        added = text[self._num_shown :]
        self._num_shown = len(text)
        if len(self._tail) > 16:
            self._tail = self._tail[-4:]
            self._num_shown = len(self._tokenizer.decode(self._tail))
        return added

    def finish(self) -> str:
        """What was held back."""
        return self._tokenizer.decode(self._tail)[self._num_shown :]


def _compile(path: Path) -> jinja2.Template:
    # A template comes with the bundle: the sandbox keeps it from reaching into Python.
    # The same settings, filters and functions as transformers' chat_template_utils.py.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except (jinja2.TemplateError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not a valid chat template ({error}); export again") from None


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
