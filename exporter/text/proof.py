"""Prove that the bundle tokenizes and renders exactly as transformers does."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from exporter.errors import ExportError
from exporter.original.record import Prompt
from exporter.text.files import OriginalTokenizer, TextFiles, token_entry
from runtime_py.bundle.tokenizer import Tokenizer, refuse_deadly
from runtime_py.errors import RunError
from runtime_py.terminal.printable import shown

logger = logging.getLogger(__name__)

Chat = Sequence[Mapping[str, str]]  # {"role", "content"} of each message
_ANY_LENGTH = 1 << 24  # tokens; prompts that are too long for the context are dropped later

# Cases that templates treat differently: one turn, several turns, white space to trim.
CONVERSATIONS = (
    [{"role": "user", "content": "Hello!"}],
    [
        {"role": "user", "content": "  What is 2 + 2? "},
        {"role": "assistant", "content": "4\n"},
        {"role": "user", "content": "And in words?"},
    ],
)

_AT_ONCE = 100  # conversations per process
_MARK = "qzx"
_MARKED = (
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": _MARK},
    {"role": "user", "content": "Again."},
)


@dataclass(frozen=True)
class ProvenText:
    """The prompts' tokens, in which the bundle's files and transformers agree."""

    prompts: list[tuple[str, list[int]]]  # text and token ids
    special_tokens: Mapping[str, str]  # name, as "eos_token", -> text
    encode: Callable[[str], list[int]] = field(compare=False)  # transformers', for plain text


def prove_text(text: TextFiles, prompts: Sequence[Prompt], vocab_size: int) -> ProvenText:
    """Tokenize every prompt both as transformers does and as the bundle will.

    Raises:
        ExportError: if they differ, or if a text becomes none of the model's tokens: better now
            than when everything is lowered.
    """
    try:
        refuse_deadly(text.tokenizer)
        theirs = OriginalTokenizer(text.folder)
        special_tokens = theirs.special_tokens
        ours = Tokenizer(
            text.tokenizer,
            token_entry(text, special_tokens),
            text.chat_template,
            context_length=_ANY_LENGTH,
        )
        _refuse_missing(text, theirs, ours)
        usable = _usable(text, prompts)
        chats: list[Chat] = [_chat(prompt) for prompt in usable if prompt.kind == "chat"]
        if text.chat_template is not None:
            chats += CONVERSATIONS
        talks = _encode_chats(theirs, ours, text, chats)
        said = iter(talks)
        encoded = [
            (
                prompt.text,
                next(said) if prompt.kind == "chat" else _encode(theirs, ours, text, prompt),
            )
            for prompt in usable
        ]
        _report_turn_end(text, theirs, ours)
    except RunError as error:
        raise ExportError(f"{text.folder}: {error}") from None
    texts = [*encoded, *zip(map(str, chats), talks, strict=True)]
    for what, ids in texts:
        if max(ids, default=0) >= vocab_size:
            raise ExportError(
                f"{text.folder}: the tokenizer turns {shown(what)!r} into token {max(ids)}, the "
                f"model has {vocab_size}; add the model's own tokenizer"
            )
    encode = partial(theirs.encode, bos_token_id=text.bos_token_id)
    return ProvenText(encoded, special_tokens, encode)


def _usable(text: TextFiles, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that can be used: without a chat template, only those to continue."""
    if text.chat_template is not None:
        return list(prompts)
    plain = [prompt for prompt in prompts if prompt.kind == "text"]
    if not plain:
        raise ExportError(
            f"{text.folder}: no chat template, and all {len(prompts)} prompts are chats; give "
            'prompts of "kind": "text", or add the chat_template.jinja of the model'
        )
    logger.warning(
        "text        no chat template: recording the %d text prompts, leaving out %d chats; the "
        "bundle runs with gemma-run generate --raw, not with chat",
        len(plain),
        len(prompts) - len(plain),
    )
    return plain


def _report_turn_end(text: TextFiles, theirs: OriginalTokenizer, ours: Tokenizer) -> None:
    """Warn if turns end with a token that does not stop generation."""
    if text.chat_template is None:
        return
    _, _, rest = ours.render_chat(_MARKED).partition(_MARK)
    tokens = [token for token in theirs.added_tokens if token and rest.lstrip().startswith(token)]
    end = max(tokens, key=len, default=None)
    if end is not None and theirs.added_tokens[end] not in text.stop_token_ids:
        logger.warning(
            "text        the chat template ends a turn with %s, token %d, and eos_token_id in "
            "generation_config.json has %s only: answers run on; add it there",
            shown(end),
            theirs.added_tokens[end],
            list(text.stop_token_ids),
        )


def _refuse_missing(text: TextFiles, theirs: OriginalTokenizer, ours: Tokenizer) -> None:
    """Refuse tokens that only tokenizer_config.json adds: a bundle has tokenizer.json alone."""
    for token, token_id in theirs.added_tokens.items():
        if ours.token_id(token) != token_id:
            raise ExportError(
                f"{text.folder}/tokenizer_config.json: token {shown(token)!r} is {token_id} there, "
                f"and {ours.token_id(token)} in tokenizer.json, which a bundle has alone; save the "
                "tokenizer again with save_pretrained"
            )


def _encode(
    theirs: OriginalTokenizer, ours: Tokenizer, text: TextFiles, prompt: Prompt
) -> list[int]:
    found = ours.encode(prompt.text)  # first, because it turns the library's panics into one line
    return _refuse_other_tokens(prompt.text, found, theirs.encode(prompt.text, text.bos_token_id))


def _chat(prompt: Prompt) -> Chat:
    return [{"role": "user", "content": prompt.text}]


def _encode_chats(
    theirs: OriginalTokenizer, ours: Tokenizer, text: TextFiles, chats: Sequence[Chat]
) -> list[list[int]]:
    encoded = []
    for start in range(0, len(chats), _AT_ONCE):
        some = chats[start : start + _AT_ONCE]
        # Ours first: it runs in a limited process, which ends an endless template.
        for chat, found in zip(some, ours.encode_chats(some), strict=True):
            said = str([message["content"] for message in chat])
            wanted = theirs.encode_chat(chat, text.chat_template)
            encoded.append(_refuse_other_tokens(said, found, wanted))
    return encoded


def _refuse_other_tokens(text: str, found: list[int], wanted: list[int]) -> list[int]:
    if found != wanted:
        raise ExportError(
            f"the bundle's tokenizer turns {shown(text, 60)!r} into {found[:12]}…, transformers' "
            f"into {wanted[:12]}…; tokenizer.json does not match tokenizer_config.json, save both "
            "again"
        )
    return found
