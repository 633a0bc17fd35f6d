"""What a program asks: text, a conversation or tokens, made tokens by the bundle's own files."""

from collections.abc import Mapping, Sequence
from typing import cast

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
    if not prompt:
        raise RunError("the prompt is empty; it needs text, messages or tokens")
    if isinstance(prompt, str):
        if raw:
            return tokenizer.encode(prompt)
        return tokenizer.encode_chat([{"role": "user", "content": prompt}])
    if raw:
        raise RunError("raw continues text; leave it out for messages and tokens")
    if isinstance(prompt[0], Mapping):
        return tokenizer.encode_chat(_checked(cast(Sequence[Message], prompt)))
    return [int(token_id) for token_id in cast(Sequence[int], prompt)]


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    for index, message in enumerate(messages):
        for key in ("role", "content"):
            value = message.get(key)
            if not isinstance(value, str):
                raise RunError(
                    f"message {index} has {shown(value)} as {key}; it needs text, as in "
                    '{"role": "user", "content": "Hello"}'
                )
    return messages
