"""The official LiteRT-LM runtime loads our model.litertlm as it is and says what transformers says.

The file has the signatures verify_2 and verify_8 next to verify; the runtime asks for verify by its
name ("Signature not found: verify" without it) and does not mind the others.

Known of LiteRT-LM 0.18.1: with speculation it gives up to three tokens more than max_output_tokens,
so its text is compared as far as ours goes. Near the end of the KV rows its verify call would be
clamped and wrong; max_num_tokens in the file's metadata keeps it away from there.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.end_to_end.conftest import NUM_TOKENS, ROOT

VERIFY_WIDTH = 4
MIN_ACCEPTANCE = 0.5
TIMEOUT_S = 300
ROOMS = (4, 9, 10, 11, 12, 40)  # tokens left for the answer, about


@dataclass(frozen=True)
class Answer:
    prompt_ids: list[list[int]]
    texts: list[str]
    log: str

    @property
    def acceptance(self) -> float:
        """Accepted drafts of all drafts, as the runtime counts them."""
        return float(re.findall(r"MTP Drafter - Success rate: ([\d.e+-]+)", self.log)[-1])


@dataclass(frozen=True)
class Official:
    """The official runtime with one file."""

    model: Path
    scratch: Path

    def ask(self, texts: list[str], *, speculative: bool, num_tokens: int = NUM_TOKENS) -> Answer:
        request, answer = self.scratch / "request.json", self.scratch / "answer.json"
        answer.unlink(missing_ok=True)
        request.write_text(
            json.dumps(
                {
                    "model": str(self.model),
                    "cache_dir": str(self.scratch),
                    "speculative": speculative,
                    "texts": texts,
                    "max_output_tokens": num_tokens,
                }
            )
        )
        done = subprocess.run(
            [sys.executable, "-m", "tests.end_to_end.official_runtime", request, answer],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stderr[-4000:]}"
        return Answer(**json.loads(answer.read_text()), log=done.stderr)


@pytest.fixture(scope="module")
def official(export_tiny, tmp_path_factory) -> Official:
    return Official(export_tiny("float32") / "model.litertlm", tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def tokenizer(tiny) -> Tokenizer:
    return Tokenizer.from_file(str(tiny.model / "tokenizer.json"))


@pytest.fixture(scope="module")
def stop_ids(tiny) -> set[int]:
    found = json.loads((tiny.model / "generation_config.json").read_text())["eos_token_id"]
    return set(found if isinstance(found, list) else [found])


def until_stop(token_ids: list[int], stop_ids: set[int]) -> list[int]:
    for count, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[:count]
    return token_ids


@pytest.mark.parametrize("speculative", [False, True], ids=["plain", "speculative"])
def test_greedy_text_is_that_of_transformers(float32, official, tokenizer, stop_ids, speculative):
    """64 tokens of each prompt: recorded from transformers when the bundle was made.

    One is so long that the official runtime's last rows, which it does not use, cut its answer.
    """
    limit = float32.bundle.manifest.model.context_length - (VERIFY_WIDTH - 1)
    prompts = [ids.tolist() for ids in float32.reference.prompt_ids]
    bos, *_ = prompts[0]
    assert all(ids[0] == bos for ids in prompts)
    texts = [tokenizer.decode(ids[1:], skip_special_tokens=False) for ids in prompts]

    answer = official.ask(texts, speculative=speculative)

    assert [[bos, *ids] for ids in answer.prompt_ids] == prompts
    recorded = zip(prompts, float32.reference.greedy_ids.tolist(), strict=True)
    for (prompt, greedy_ids), text in zip(recorded, answer.texts, strict=True):
        kept = until_stop(greedy_ids[: limit - len(prompt)], stop_ids)
        expected = tokenizer.decode(kept, skip_special_tokens=False)
        assert text.startswith(expected)
        too_much = len(tokenizer.encode(text, add_special_tokens=False).ids) - len(kept)
        assert too_much < VERIFY_WIDTH
    if speculative:
        assert answer.acceptance > MIN_ACCEPTANCE


@pytest.mark.parametrize("speculative", [False, True], ids=["plain", "speculative"])
def test_long_prompts_are_right_to_the_last_row(
    float32, official, original, tokenizer, speculative
):
    """Prompts of several prefill calls whose answers run into the end of the KV rows."""
    limit = float32.bundle.manifest.model.context_length - (VERIFY_WIDTH - 1)
    bos, *_ = float32.reference.prompt_ids[0].tolist()
    words = [i for ids in float32.reference.prompt_ids for i in ids[1:].tolist()] * 9
    texts = [tokenizer.decode(words[: limit - room], skip_special_tokens=False) for room in ROOMS]

    answer = official.ask(texts, speculative=speculative, num_tokens=2 * max(ROOMS))

    for prompt_ids, text in zip(answer.prompt_ids, answer.texts, strict=True):
        greedy_ids = original.greedy([bos, *prompt_ids], 2 * max(ROOMS))
        assert text
        assert tokenizer.decode(greedy_ids, skip_special_tokens=False).startswith(text)
