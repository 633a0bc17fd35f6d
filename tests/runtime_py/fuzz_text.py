"""Damaged tokenizers and templates: python -m tests.runtime_py.fuzz_text FIRST LAST.

Each seed is one case: it must work or be a RunError. A panic, an abort, a hang or a gibibyte more
than a good file takes ends the process.
"""

import copy
import json
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from runtime_py.bundle.chat_template import ChatTemplate
from runtime_py.bundle.manifest import TokenEntry
from runtime_py.bundle.text_stream import TextStream
from runtime_py.bundle.tokenizer import Tokenizer
from runtime_py.errors import RunError
from tests.golden_traces.tokenizers import like_gemma

TOKENS = TokenEntry(tokenizer="t", chat_template=None, bos_token_id=1, stop_token_ids=())
TEXT = "Hello  there, aaaaaaaaaaaaaaaa €\n"
NUMBERS = [0, 1, -1, 3, 300, 2**31, 2**32 - 1, 2**63, 10**12, 10**30, 1e308, 0.5]
WORDS = ["", "a", "▁", " ", "aa" * 50, "(", "(a*)*b", "<0x41>", "\ud800", "<bos>", "Ā", "x" * 9999]
PARTS: list[Any] = [
    None,
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": "(a|a?)+$"}, "content": "aaaa"},
    {"type": "Prepend", "prepend": "a" * 10**5},
    {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
    {"type": "Strip", "content": "a", "start": 0, "stop": 10**9},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "FixedLength", "length": 0},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True},
    {"type": "BPEDecoder", "suffix": ""},
    {"type": "NFKD"},
    {"type": "Split", "pattern": {"Regex": "(a*)*$"}, "behavior": "Isolated", "invert": True},
]
SECTIONS = ("normalizer", "pre_tokenizer", "decoder", "post_processor", "padding", "truncation")
PIECES = [
    "{{ ", " }}", "{% ", " %}", "for m in messages", "endfor", "if x", "endif", "m.content",
    "messages", "bos_token", "range(10 ** 5)", "'a' * 10 ** 9", "[1] * 10 ** 9", "7 ** 10 ** 8",
    "1 / 0", " + ", "(" * 200, ")" * 200, "|tojson", "|length", "namespace()",
    "raise_exception('x')", "set n = ", "macro f()", "endmacro", "f()", ".__class__",
    "['__init__']", "|attr('mro')", "\n",
    "lipsum(n=99)", "{#", "#}", "{% generation %}", "strftime_now('%Y')",
    "loop.index", "include 'a'",
]  # fmt: skip


def damaged_tokenizer(noise: random.Random) -> bytes:
    """A tokenizer.json with one to three things changed."""
    base = json.loads(like_gemma().to_str())
    values = copy.deepcopy(base)
    for _ in range(noise.randint(1, 3)):
        kind = noise.randrange(5)
        if kind == 0:
            parts = [copy.deepcopy(noise.choice(PARTS)) for _ in range(noise.randint(1, 3))]
            section = noise.choice(SECTIONS)
            names = {"pre_tokenizer": "pretokenizers", "post_processor": "processors"}
            many = {"type": "Sequence", names.get(section, f"{section}s"): parts}
            values[section] = many if len(parts) > 1 else parts[0]
        elif kind == 1:
            size = noise.choice(NUMBERS)
            values["padding"] = {
                "strategy": noise.choice(["BatchLongest", {"Fixed": size}]),
                "direction": "Right",
                "pad_to_multiple_of": noise.choice([None, size]),
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "a",
            }
        elif kind == 2:
            _change_somewhere(noise, values)
        elif kind == 3:
            _change_somewhere(noise, values["model"])
        else:
            token = {"id": noise.choice(NUMBERS), "content": noise.choice(WORDS)}
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            token |= {flag: noise.random() < 0.5 for flag in flags}
            values["added_tokens"] = [*base["added_tokens"], token]
    text = json.dumps(values).encode()
    return text[: noise.randrange(len(text))] if noise.random() < 0.1 else text


def damaged_template(noise: random.Random) -> str:
    """Words of the language in any order."""
    return "".join(noise.choice(PIECES) for _ in range(noise.randint(1, 14)))


def use_tokenizer(path: Path) -> None:
    """All that a command does with one."""
    tokenizer = Tokenizer(path, TOKENS, None, 512)
    stream = TextStream(tokenizer)
    for token_id in [*tokenizer.encode(TEXT)[:600], *range(0, 520, 7), 10**9]:
        stream.push([token_id])
    stream.finish()


def _change_somewhere(noise: random.Random, values: Any) -> None:
    while isinstance(values, dict | list) and values:
        key = noise.choice(list(values) if isinstance(values, dict) else range(len(values)))
        if noise.random() < 0.5 or not isinstance(values[key], dict | list):
            values[key] = noise.choice([*NUMBERS, *WORDS, None, True, [], {}])
            return
        values = values[key]


def main(first: int, last: int) -> None:
    """One line for every seed, before it is tried."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), -1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        for seed in range(first, last):
            print(seed, flush=True)  # noqa: T201
            noise = random.Random(seed)
            try:
                if seed % 5:
                    path.write_bytes(damaged_tokenizer(noise))
                    use_tokenizer(path)
                else:
                    ChatTemplate(damaged_template(noise), {}).render([{"role": "user"}])
            except RunError as error:
                if "\n" in str(error):
                    raise


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
