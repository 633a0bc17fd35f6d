"""What a program asks: text, a conversation or tokens, made tokens by the bundle's own files."""

from collections.abc import Mapping, Sequence
from operator import index
from typing import SupportsIndex, cast

from runtime_py.bundle.chat_template import Message
from runtime_py.bundle.tokenizer import Tokenizer
from runtime_py.errors import RunError
from runtime_py.terminal.printable import shown

# Text, a conversation in which the model speaks next, or token ids.
Prompt = str | Sequence[Message] | Sequence[int]


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt, *, raw: bool) -> list[int]:
    """The tokens that the model reads.

    Args:
        tokenizer: of the bundle.
        prompt: text is the user's first message; token ids stay as they are.
        raw: of text: continue it as it is, without the chat template.

    Raises:
        RunError: for a prompt that is empty, of no kind above, or that the template refuses.
    """
    if len(prompt) == 0:
        raise RunError("the prompt is empty; it needs text, messages or tokens")
    if isinstance(prompt, str):
        if raw:
            return tokenizer.encode(prompt)
        return tokenizer.encode_chat([{"role": "user", "content": prompt}])
    if raw:
        raise RunError("raw continues text; leave it out for messages and tokens")
    if all(isinstance(item, Mapping) for item in prompt):
        return tokenizer.encode_chat(_checked(cast(Sequence[Message], prompt)))
    return [_token_id(item) for item in prompt]


def _token_id(value: object) -> int:
    try:
        return index(cast(SupportsIndex, value))
    except TypeError:
        raise RunError(
            f"the prompt has {shown(repr(value))} in it; it needs text, a list of messages or a "
            "list of token ids"
        ) from None


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    for number, message in enumerate(messages):
        for key in ("role", "content"):
            value = message.get(key)
            if not isinstance(value, str):
                raise RunError(
                    f"message {number} has {shown(value)} as {key}; it needs text, as in "
                    '{"role": "user", "content": "Hello"}'
                )
    return messages
