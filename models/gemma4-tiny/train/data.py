"""Windows of tokens to train and validate on."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import Document, chats
from .tokenizer import BOS, EOS, encode_chat

WINDOW_LENGTH = 512  # tokens
CHAT_SHARE = 0.25  # of the windows


@dataclass(frozen=True)
class Stream:
    """A long row of tokens and the places where a window may begin."""

    tokens: Tensor  # [num_tokens]
    starts: Tensor  # [num_starts]

    def window(self, start: int, length: int) -> Tensor:
        """Return [length] tokens: bos, then the stream from ``start`` on (over the end, if so)."""
        index = torch.arange(start, start + length - 1) % len(self.tokens)
        return torch.cat([torch.tensor([BOS]), self.tokens[index]])


def raw_stream(tokenizer: Tokenizer, documents: list[Document]) -> Stream:
    """Pages one after the other, each ``<bos> text <eos>``; a window begins with a line."""
    tokens: list[int] = []
    for document in documents:
        tokens += [BOS, *tokenizer.encode(document.text).ids, EOS]
    newline = tokenizer.encode("\n").tokens[0]
    pieces = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
    ends_line = torch.tensor([piece.endswith(newline) for piece in pieces])
    row = torch.tensor(tokens)
    return Stream(row, ends_line[row].nonzero()[:, 0] + 1)


def chat_stream(tokenizer: Tokenizer, documents: list[Document]) -> Stream:
    """Exchanges in a shuffled order; a window begins with an exchange."""
    rows = [encode_chat(tokenizer, chat) for document in documents for chat in chats(document)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    tokens: list[int] = []
    starts = []
    for row in order:
        starts.append(len(tokens) + 1)  # the window itself brings the bos
        tokens += rows[row]
    return Stream(torch.tensor(tokens), torch.tensor(starts))


@dataclass(frozen=True)
class Mix:
    """The training data: batch number ``step`` is always the same, so a run can be resumed."""

    raw: Stream
    chat: Stream
    batch_length: int = 8  # windows

    def batch(self, step: int, length: int = WINDOW_LENGTH) -> Tensor:
        """Return the windows of one step: [batch_length, length]."""
        random = torch.Generator().manual_seed(step)
        rows = []
        for row in range(self.batch_length):
            stream = self.chat if row < CHAT_SHARE * self.batch_length else self.raw
            pick = int(torch.randint(len(stream.starts), (1,), generator=random))
            rows.append(stream.window(int(stream.starts[pick]), length))
        return torch.stack(rows)


def validation_windows(stream: Stream, num_windows: int) -> Tensor:
    """Return evenly spaced windows of a held-out stream: [num_windows, WINDOW_LENGTH]."""
    picks = torch.linspace(0, len(stream.starts) - 1, num_windows).long()
    return torch.stack([stream.window(int(stream.starts[i]), WINDOW_LENGTH) for i in picks])
