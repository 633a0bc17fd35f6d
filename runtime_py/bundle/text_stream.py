"""Turn tokens into text as they arrive: whole characters only, without thoughts."""

from collections.abc import Iterator, Sequence

from runtime_py.bundle.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns tokens into text as they arrive, never splitting a character.

    The joined pieces equal the text of all tokens decoded at once, without thoughts. What later
    tokens may change is held back: a run of byte tokens until it ends, because one wrong byte makes
    the whole run wrong, and a final replacement character, which may still become a letter.
    Each token is decoded a bounded number of times, however long the text is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # the last decoded tokens, which the next ones continue
        self._num_shown = 0  # characters of the context's text that were returned
        self._bytes: list[int] = []  # the byte tokens at the end of the text
        self.thinking = False  # whether a thought has begun and not yet ended

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens add."""
        shown = [item for item in self._spoken(token_ids) if self._tokenizer.is_shown(item)]
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
        """The text that was held back."""
        text = self._decode(self._bytes)
        self._bytes = []
        return self._settle(text, len(text))

    def _spoken(self, token_ids: Sequence[int]) -> Iterator[int]:
        """All but thoughts, which Gemma 4's own template also removes from earlier turns.

        A thought without an end lasts until the last token; an end without a begin is ignored.
        """
        thought = self._tokenizer.thought
        for token_id in token_ids:
            if thought is not None and token_id in thought:
                self.thinking = token_id == thought.begin
            elif not self.thinking:
                yield token_id

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
