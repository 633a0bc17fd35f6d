"""The proof that the bundle's text side says what transformers' says: token for token."""

from collections.abc import Sequence
from pathlib import Path

from exporter.errors import ExportError, shown
from exporter.reference import Prompt
from exporter.text import OriginalTokenizer, TextFiles
from runtime_py.bundle import Bundle
from runtime_py.manifest import Manifest

# What chat templates treat differently: one turn, several, and white space to be trimmed.
CONVERSATIONS = (
    [{"role": "user", "content": "Hello!"}],
    [
        {"role": "user", "content": "  What is 2 + 2? "},
        {"role": "assistant", "content": "4\n"},
        {"role": "user", "content": "And in words?"},
    ],
)


def encode_prompts(
    text: TextFiles, prompts: Sequence[Prompt], vocab_size: int
) -> list[tuple[str, list[int]]]:
    """The text of every prompt with its tokens, as transformers makes them.

    Raises:
        ExportError: if a prompt or a conversation becomes none of the model's tokens: better now
            than when everything is lowered.
    """
    tokenizer = OriginalTokenizer(text.folder)
    encoded = [(prompt.text, _encode(tokenizer, text, prompt)) for prompt in prompts]
    chats = [] if text.chat_template is None else CONVERSATIONS
    for said, ids in [*encoded, *((str(chat), tokenizer.encode_chat(chat)) for chat in chats)]:
        if max(ids, default=0) >= vocab_size:
            raise ExportError(
                f"{text.folder}: the tokenizer turns {shown(said)!r} into token {max(ids)}, the "
                f"model has {vocab_size}; add the model's own tokenizer"
            )
    return encoded


def _encode(tokenizer: OriginalTokenizer, text: TextFiles, prompt: Prompt) -> list[int]:
    if prompt.kind == "chat":
        return tokenizer.encode_chat([{"role": "user", "content": prompt.text}])
    return tokenizer.encode(prompt.text, text.bos_token_id)


def compare_text(
    folder: Path, manifest: Manifest, text: TextFiles, prompts: Sequence[Prompt]
) -> None:
    """The bundle's own tokenizer and chat template must say what transformers' say.

    Raises:
        ExportError: naming the text that becomes other tokens.
    """
    theirs, ours = OriginalTokenizer(text.folder), Bundle(folder, manifest).tokenizer()
    for prompt in prompts:
        wanted = theirs.encode(prompt.text, text.bos_token_id)
        _refuse_other_tokens(prompt.text, ours.encode(prompt.text), wanted)
    if text.chat_template is not None:
        for conversation in CONVERSATIONS:
            wanted = theirs.encode_chat(conversation)
            said = str([message["content"] for message in conversation])
            _refuse_other_tokens(said, ours.encode_chat(conversation), wanted)


def _refuse_other_tokens(text: str, found: list[int], wanted: list[int]) -> None:
    if found != wanted:
        raise ExportError(
            f"the bundle's tokenizer turns {text[:60]!r} into {found[:12]}…, transformers' into "
            f"{wanted[:12]}…; tokenizer.json does not match tokenizer_config.json, save both again"
        )
