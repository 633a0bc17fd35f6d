"""The held-out prompts: beginnings of paragraphs and requests, from pages never trained on."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from .corpus import Document, chats

SHORTEST, LONGEST = 24, 64  # tokens of a text prompt
TEXTS_PER_PAGE = 2
CHATS_PER_PAGE = 1


def text_prompts(tokenizer: Tokenizer, page: Document, chance: random.Random) -> Iterator[str]:
    """Yield beginnings of the page's paragraphs, in a random order, of random lengths."""
    starts = [found.end() for found in re.finditer(r"\n\n(?=\S)", page.text)]
    chance.shuffle(starts)
    for start in starts:
        encoding = tokenizer.encode(page.text[start : start + 8 * LONGEST])
        length = chance.randint(SHORTEST, LONGEST)
        if len(encoding.ids) > length:
            yield page.text[start : start + encoding.offsets[length - 1][1]]


def held_out_prompts(tokenizer: Tokenizer, held_out: list[Document]) -> list[dict[str, str]]:
    """Return {"kind": "text" or "chat", "text": ...} from every held-out page."""
    chance = random.Random(0)
    prompts = []
    for page in held_out:
        texts = text_prompts(tokenizer, page, chance)
        for _ in range(TEXTS_PER_PAGE):
            prompts.append({"kind": "text", "text": next(texts)})
        requests = chance.sample(chats(page), CHATS_PER_PAGE)
        prompts += [{"kind": "chat", "text": chat.request} for chat in requests]
    return prompts


def write(prompts: list[dict[str, str]], path: Path) -> None:
    """Write one JSON object a line."""
    lines = [json.dumps(prompt, ensure_ascii=False) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
