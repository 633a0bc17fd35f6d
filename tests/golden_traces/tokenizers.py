"""What the tokenizers library makes of texts, with the two kinds of tokenizer that bundles have."""

import json
import random
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from runtime_py.bundle.text_stream import TextStream
from tests.runtime_py.bundles import opened

TINY = Path(__file__).parents[2] / "models" / "gemma4-tiny" / "target" / "tokenizer.json"
_TEXTS = [
    "",
    " ",
    "The argparse module",
    "  two  spaces, a\ttab\n\nand lines \n",
    "don't, we'll 12345 x_1 == y[0]; # 0.5e-3",
    "Zürich, naïve café — “quotes” … 東京 привет 🙂🙃",
    "<bos><|turn>user\nHello<turn|>\n<|turn>model\n",
    "a<bos>b <notatoken> <bos",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u00a0\u3000\u2028x\u0301",
]


def recorded_tokenizers() -> Iterator[dict[str, Any]]:
    """A tokenizer.json, its texts and their ids, and texts of ids cut anywhere."""
    tiny = json.loads(TINY.read_text())
    shown = tiny | {"model": tiny["model"] | {"merges": "tiny", "vocab": "tiny"}}
    yield _recorded(shown, tiny, ("<|channel>", "<channel|>"))
    values = json.loads(like_gemma().to_str())
    yield _recorded(values, values, ("<|turn>", "<turn|>"))


def _recorded(
    shown: dict[str, Any], whole: dict[str, Any], thought: tuple[str, str]
) -> dict[str, Any]:
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    encoded = [[text, tokenizer.encode(text, add_special_tokens=False).ids] for text in _TEXTS]
    pieces = [ids[start:end] for _, ids in encoded for start, end in ((0, 9), (1, 3), (2, None))]
    decoded = [[ids, tokenizer.decode(ids, skip_special_tokens=True)] for ids in pieces]
    return {
        # The tiny model's tokenizer lies beside the tests already.
        "json": "tiny" if shown is not whole else json.dumps(whole),
        "encoded": encoded,
        "decoded": decoded,
        "thought": [tokenizer.token_to_id(token) for token in thought],
        "streamed": [*_streamed(tokenizer, thought, [ids for _, ids in encoded])],
    }


def _streamed(
    tokenizer: Tokenizer, thought: tuple[str, str], texts: list[list[int]]
) -> Iterator[list[Any]]:
    """Chunks of ids and the piece after each, the last piece being what was held back."""
    view = opened(tokenizer, dict(zip(("soc_token", "eoc_token"), thought, strict=True)))
    noise = random.Random(7)
    begin, end = thought
    said = ["€" * 8 + "日本語 ꙮ𓀀 x", f"a{begin}b{begin}c{end}d{end}e{begin}f", f"€{begin}€{end}€"]
    texts = [*(tokenizer.encode(text, add_special_tokens=False).ids for text in said), *texts]
    # Byte tokens lie together, and so do those of GPT-2's signs: any order, whole or broken.
    texts += [[noise.randrange(300) for _ in range(40)] for _ in range(12)]
    for ids in texts:
        starts = [0, *accumulate(noise.randint(1, 4) for _ in ids)]
        chunks = [ids[start:stop] for start, stop in pairwise(starts) if ids[start:stop]]
        stream = TextStream(view)
        yield [chunks, [*(stream.push(chunk) for chunk in chunks), stream.finish()]]


def like_gemma() -> Tokenizer:
    """Small, and built as Gemma's is: spaces are ▁, what has no token becomes bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<bos>", "<|turn>", "<turn|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, limit_alphabet=60, show_progress=False
    )
    lines = [line for text in _TEXTS[:5] for line in [text] * 4]
    tokenizer.train_from_iterator(lines, trainer)
    values = json.loads(tokenizer.to_str())
    # In Gemma's file bytes are ordinary tokens, and newlines are added ones that are not special.
    kept = [token for token in values["added_tokens"] if not token["content"].startswith("<0x")]
    newest = max(values["model"]["vocab"].values()) + 1
    newline = kept[0] | {"id": newest, "content": "\n\n", "special": False, "normalized": False}
    values["added_tokens"] = [*kept, newline]
    values["model"]["vocab"]["\n\n"] = newest
    return Tokenizer.from_str(json.dumps(values))
