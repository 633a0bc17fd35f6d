"""Turn text and conversations into tokens and back, with the bundle's own files."""

import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as HfTokenizer

from runtime_py.bundle.chat_template import ChatTemplate, Message
from runtime_py.bundle.manifest import TokenEntry
from runtime_py.device import freed_memory
from runtime_py.errors import RunError
from runtime_py.terminal.printable import shown

MAX_FILE_BYTES = 256 << 20  # Gemma 4's file has 32 MB
MAX_TOKEN_BYTES = 256  # no token of Gemma stands for more
MAX_GROWTH = 64  # characters that a normalizer or a decoder may make of one
# Two features crash the process inside the library, and no Gemma has them: a normalizer whose first
# bytes say how much memory to allocate, and a prefix that is cut in the middle of a character.
# Escaped letters, which no JSON writer produces, could hide these names, so they are refused too.
_PRECOMPILED = b"precompiled_charsmap"
_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')
_ESCAPED_LETTER = re.compile(rb"\\u00(?:[46][1-9a-fA-F]|5[0-9aAfF]|7[0-9aA])")
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


class Thought(NamedTuple):
    """The tokens between which a model thinks: <|channel> and <channel|>."""

    begin: int
    end: int


class Tokenizer:
    """A bundle's tokenizer with its chat template.

    Args:
        path: tokenizer.json.
        tokens: of the manifest.
        template: the chat template's text.
        context_length: tokens; text that cannot fit is refused before it is tokenized.

    Raises:
        RunError: if the file is not a tokenizer.
    """

    def __init__(
        self, path: Path, tokens: TokenEntry, template: str | None, context_length: int
    ) -> None:
        self._path = path
        self._tokenizer = self._read(path)
        self._bos_token_id = tokens.bos_token_id
        self._context_length = context_length
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        special_tokens = tokens.special_tokens
        if special_tokens is None:  # some 1.0 bundles
            special_tokens = {"bos_token": self._text_of(self._bos_token_id)}
        self.thought = self._thought(special_tokens)
        self._template = None if template is None else ChatTemplate(template, special_tokens)

    @property
    def max_bytes(self) -> int:
        """Bytes of UTF-8: a longer text cannot fit the context."""
        return MAX_TOKEN_BYTES * self._context_length

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text, with the beginning-of-sequence token first.

        Raises:
            RunError: for text that is not UTF-8, or too long for the context.
        """
        token_ids = self._encode(text)
        if self._bos_token_id is not None and token_ids[:1] != [self._bos_token_id]:
            return [self._bos_token_id, *token_ids]
        return token_ids

    def encode_chat(self, messages: Iterable[Message]) -> list[int]:
        """The tokens of a conversation, up to where the model's next turn begins.

        Raises:
            RunError: as `encode` and `render_chats` do.
        """
        return self.encode_chats([list(messages)])[0]

    def encode_chats(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """As `encode_chat`, for several at hardly more cost than one."""
        return [self._encode(text) for text in self.render_chats(conversations)]

    def render_chat(self, messages: Iterable[Message]) -> str:
        """The text of a conversation, up to where the model's next turn begins."""
        return self.render_chats([list(messages)])[0]

    def render_chats(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """As `render_chat`, for several.

        Raises:
            RunError: if the bundle has no chat template, or it refuses these messages.
        """
        if self._template is None:
            raise RunError("this bundle has no chat template; use gemma-run generate --raw")
        for messages in conversations:
            for message in messages:
                self._refuse_too_long(message["content"])
        return self._template.render(*conversations)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, without control tokens.

        Raises:
            RunError: if the library fails.
        """
        try:
            return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
        except BaseException as error:
            raise self._failed(error) from None

    def token_id(self, text: str) -> int | None:
        """The id of one token; None if there is no such token."""
        token_id: int | None = self._tokenizer.token_to_id(text)
        return token_id

    def is_shown(self, token_id: int) -> bool:
        """Whether `decode` makes text of it: it exists and is no control token."""
        return token_id not in self._special and self._tokenizer.id_to_token(token_id) is not None

    def is_byte(self, token_id: int) -> bool:
        """Whether it stands for one byte, such as <0xE2>, which may be part of a character."""
        return _BYTE_TOKEN.fullmatch(self._text_of(token_id)) is not None

    def text_after_bos(self, token_ids: Sequence[int]) -> str:
        """Text including control tokens, except a beginning-of-sequence token at the start."""
        kept = token_ids[1:] if token_ids[:1] == [self._bos_token_id] else token_ids
        return str(self._tokenizer.decode(list(kept), skip_special_tokens=False))

    def _read(self, path: Path) -> HfTokenizer:
        refuse_deadly(path)
        try:
            with no_panic():
                tokenizer = HfTokenizer.from_file(str(path))
        except LibraryError as error:
            raise RunError(f"{path}: not a tokenizer file ({error}); export again") from None
        freed_memory.give_back()
        # As in transformers, a single text is neither padded nor truncated.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for name in ("normalizer", "decoder"):
            if _growth(_state(getattr(tokenizer, name))) > MAX_GROWTH:
                raise RunError(
                    f"{path}: its {name} makes more than {MAX_GROWTH} characters of one; "
                    "export again"
                )
        return tokenizer

    def _encode(self, text: str) -> list[int]:
        self._refuse_too_long(text)
        try:
            with no_panic():
                return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except LibraryError as error:
            raise self._failed(error) from None

    def _failed(self, error: BaseException) -> RunError:
        reason = _library_error(error)
        return RunError(f"{self._path}: the tokenizer fails ({reason}); export again")

    def _refuse_too_long(self, text: str) -> None:
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError as error:
            raise RunError(
                f"the prompt is not UTF-8 at character {error.start + 1}; save it as UTF-8"
            ) from None
        if num_bytes > self.max_bytes:
            raise RunError(
                f"the prompt is longer than {self.max_bytes} bytes, more than a context of "
                f"{self._context_length} tokens can hold; shorten it"
            )

    def _text_of(self, token_id: int | None) -> str:
        return "" if token_id is None else (self._tokenizer.id_to_token(token_id) or "")

    def _thought(self, special_tokens: dict[str, str]) -> Thought | None:
        begin, end = (
            self.token_id(special_tokens.get(name, "")) for name in ("soc_token", "eoc_token")
        )
        return None if begin is None or end is None else Thought(begin, end)


class LibraryError(Exception):
    """The tokenizers library refuses a file or a text, or panics."""


@contextmanager
def no_panic() -> Iterator[None]:
    """Turn the library's errors into LibraryError and keep its lines off stderr.

    A Rust panic is a BaseException and prints a message of its own.

    Raises:
        LibraryError: for whatever the library raises.
    """
    with _closed_stderr():
        try:
            yield
        except BaseException as error:
            raise _library_error(error) from None


def _library_error(error: BaseException) -> LibraryError:
    """Wrap the library's error; raise any other, such as KeyboardInterrupt, unchanged."""
    # tokenizers raises a bare Exception for a bad file.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return LibraryError(shown(error, 300) or type(error).__name__)


@contextmanager
def _closed_stderr() -> Iterator[None]:
    kept = None
    with suppress(OSError):  # it may be closed already
        kept = os.dup(2)
    if kept is None:
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def refuse_deadly(path: Path) -> None:
    """Refuse a tokenizer.json that would crash the process inside the library.

    Raises:
        RunError: saying why.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise RunError(
            f"{path}: {size} bytes, a tokenizer has at most {MAX_FILE_BYTES >> 20} MiB; export "
            "again"
        )
    if size == 0:  # nothing to map
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        deadly = _is_deadly(data)
    if deadly:
        raise RunError(
            f"{path}: it has a Precompiled normalizer or a continuing_subword_prefix, which would "
            "crash the process and which no Gemma has; export again"
        )


def _is_deadly(data: mmap.mmap) -> bool:
    if data.find(_PRECOMPILED) >= 0 or _PREFIX.search(data):
        return True
    return any(_is_escape(data, match.start()) for match in _ESCAPED_LETTER.finditer(data))


def _is_escape(data: mmap.mmap, start: int) -> bool:
    """Whether this backslash begins an escape; one before it may escape it instead."""
    before = data[max(0, start - 64) : start]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 0


def _state(part: Any) -> Any:
    """A part's JSON; None if the file has no such part."""
    return None if part is None else json.loads(part.__getstate__())


def _growth(part: Any) -> int:
    """The most characters that a part makes of one character."""
    if not isinstance(part, dict):
        return 1
    growth = max(1, len(part.get("content") or ""), len(part.get("prepend") or ""))
    for nested in (*(part.get("normalizers") or ()), *(part.get("decoders") or ())):
        growth *= _growth(nested)
    return growth
