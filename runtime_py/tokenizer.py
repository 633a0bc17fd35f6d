"""Text to tokens and back, and the chat template, from the bundle's own files."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from tokenizers import Tokenizer as HfTokenizer

from runtime_py.errors import RunError
from runtime_py.manifest import TokenEntry

Message = Mapping[str, str]  # {"role": "user" | "assistant" | "system", "content": text}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """A bundle's tokenizer with its chat template."""

    def __init__(self, path: Path, tokens: TokenEntry, template: Path | None = None) -> None:
        """Read tokenizer.json and the chat template.

        Raises:
            RunError: naming the file that is none.
        """
        try:
            self._tokenizer = HfTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for a bad file
            raise RunError(f"{path}: not a tokenizer file ({error}); export again") from None
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._bos_token_id = tokens.bos_token_id
        self._template = None if template is None else _compile(template)

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

    def is_shown(self, token_id: int) -> bool:
        """Whether `decode` makes text of it: a token, and no control token."""
        return token_id not in self._special and self._tokenizer.id_to_token(token_id) is not None

    def is_byte(self, token_id: int) -> bool:
        """Whether it stands for one byte, as <0xE2> does: what is no whole character by itself."""
        return _BYTE_TOKEN.fullmatch(self._text_of(token_id)) is not None

    def text_after_bos(self, token_ids: Sequence[int]) -> str:
        """Text with its control tokens written out, but for the first, the beginning."""
        kept = token_ids[1:] if token_ids[:1] == [self._bos_token_id] else token_ids
        return str(self._tokenizer.decode(list(kept), skip_special_tokens=False))

    def _text_of(self, token_id: int | None) -> str:
        return "" if token_id is None else (self._tokenizer.id_to_token(token_id) or "")


class TextStream:
    """Turns tokens into text as they come, never splitting a character.

    The pieces, put together, are the text of all tokens decoded at once, whatever the tokens. Held
    back is what later tokens may change: byte tokens until their run ends, because one wrong byte
    makes the whole run wrong, and a replacement character at the end, which may become a letter.
    Each token is decoded a bounded number of times, however long a run is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens already decoded, which the next ones continue
        self._num_shown = 0  # characters of the context's text already given
        self._bytes: list[int] = []  # the run of byte tokens that the text ends in

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens add."""
        shown = [token_id for token_id in token_ids if self._tokenizer.is_shown(token_id)]
        num_settled = len(shown)
        while num_settled and self._tokenizer.is_byte(shown[num_settled - 1]):
            num_settled -= 1
        if not num_settled:
            self._bytes += shown
            return ""
        text = self._decode([*self._bytes, *shown[:num_settled]])
        self._bytes = shown[num_settled:]
        return self._settle(text, len(text) - text.endswith(_REPLACEMENT))

    def finish(self) -> str:
        """What was held back."""
        text = self._decode(self._bytes)
        self._bytes = []
        return self._settle(text, len(text))

    def _decode(self, token_ids: Sequence[int]) -> str:
        self._context += token_ids
        return self._tokenizer.decode(self._context)

    def _settle(self, text: str, end: int) -> str:
        added = text[self._num_shown : end]
        num_held = len(text) - max(end, self._num_shown)
        # A character has at most four bytes, so a letter that later bytes may complete begins here.
        self._context = self._context[-4:]
        self._num_shown = len(self._tokenizer.decode(self._context)) - num_held
        return added


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
