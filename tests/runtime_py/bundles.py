"""Bundles whose graphs are scripted: everything around the runtime, without a runtime."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from runtime_py.bundle.manifest import TokenEntry, file_entry
from runtime_py.bundle.reference import Reference, write_reference
from runtime_py.bundle.tokenizer import Tokenizer
from runtime_py.decoding.sampling import GREEDY
from runtime_py.decoding.session import Session, Stops
from tests.runtime_py.scripted_backend import ScriptedBackend

VOCAB_SIZE = 300
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "[{{ message['role'] }}]{{ message['content'] }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[model]{% endif %}"
)


def byte_tokenizer() -> HfTokenizer:
    """A tokenizer of single bytes, with <bos> = 0 and <stop> = 1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index + 2 for index, symbol in enumerate(alphabet)}
    tokenizer = HfTokenizer(models.BPE(vocab={"<bos>": 0, "<stop>": 1, **vocabulary}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<stop>"])
    return tokenizer


def opened(library: HfTokenizer, special_tokens: Mapping[str, str] | None = None) -> Tokenizer:
    """A bundle's view of a tokenizer, with <bos> where it has one."""
    tokens = TokenEntry(
        tokenizer="tokenizer.json",
        chat_template=None,
        bos_token_id=library.token_to_id("<bos>"),
        stop_token_ids=(),
        special_tokens=None if special_tokens is None else dict(special_tokens),
    )
    with tempfile.TemporaryDirectory() as folder:
        library.save(f"{folder}/tokenizer.json")
        return Tokenizer(Path(folder, "tokenizer.json"), tokens, None, 4096)


def scripted_reference(backend: ScriptedBackend, draft_length: int = 3) -> Reference:
    """What a scripted backend says, recorded as an original would be."""
    prompts = ("first", "second one")
    prompt_ids = tuple(np.array([2, 5, 7, index], np.int32) for index in range(len(prompts)))
    num_tokens = 12
    greedy, logits, drafts = [], [], []
    for ids in prompt_ids:
        steps = Session(backend, 128).generate(
            ids.tolist(), GREEDY, Stops(max_new_tokens=num_tokens), 0
        )
        text = [*ids.tolist(), *(token for step in steps for token in step.token_ids)]
        greedy.append(text[len(ids) :])
        starts = range(len(ids), len(text))
        logits.append([backend.target_logits(text[:start]) for start in starts])
        drafts.append(
            [
                scripted_drafts(backend, text[: start + 1], draft_length)
                for start in starts[: num_tokens - draft_length]
            ]
        )
    rows = np.array(logits, np.float32)
    probe_ids = np.argsort(-rows, axis=-1)[..., :8]
    return Reference(
        prompts=prompts,
        prompt_ids=prompt_ids,
        greedy_ids=np.array(greedy, np.int32),
        probe_ids=probe_ids.astype(np.int32),
        probe_logits=np.take_along_axis(rows, probe_ids, axis=-1),
        logit_scale=float(np.abs(rows).max()),
        draft_ids=np.array(drafts, np.int32),
    )


def scripted_drafts(backend: ScriptedBackend, text: list[int], draft_length: int) -> list[int]:
    """What the scripted drafter proposes after the last token of `text`."""
    backend.rows[: len(text) - 1] = text[:-1]
    backend.start_round()
    hidden, last, drafts = backend.hidden(text[:-1]), text[-1], []
    for _ in range(draft_length):
        logits, hidden = backend.draft(last, hidden, len(text) - 1)
        last = int(np.argmax(logits))
        drafts.append(last)
    return drafts


def manifest_values() -> dict:
    """A valid manifest as JSON values, its files not measured yet."""
    names = ("model.litertlm", "tokenizer.json", "chat_template.jinja", "reference.npz")
    return {
        "format_version": 1,
        "name": "scripted",
        "device": "raspberry-pi",
        "made_by": {"gemma-export": "0.1.0"},
        "model": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 4,
            "num_layers": 2,
            "context_length": 128,
            "has_drafter": True,
        },
        "tokens": {
            "tokenizer": "tokenizer.json",
            "chat_template": "chat_template.jinja",
            "bos_token_id": 0,
            "stop_token_ids": [1],
        },
        "draft_length": 3,
        "runtimes": {
            "litert": {
                "model": "model.litertlm",
                "recipe": "float32",
                "tolerances": {
                    "max_logit_error": 1e-4,
                    "min_agreement": 1.0,
                    "min_acceptance_ratio": 0.9,
                },
            }
        },
        "reference": "reference.npz",
        "files": {name: {"size_bytes": 0, "sha256": "0" * 64} for name in names},
    }


def write_fake_bundle(folder: Path) -> Path:
    """A complete bundle whose model file no runtime could load."""
    folder.mkdir()
    (folder / "model.litertlm").write_bytes(b"not a model, whatever its name says")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    backend = ScriptedBackend(vocab_size=VOCAB_SIZE)
    write_reference(folder / "reference.npz", scripted_reference(backend))
    values = manifest_values()
    values["files"] = {
        path.name: file_entry(path).model_dump() for path in sorted(folder.iterdir())
    }
    (folder / "manifest.json").write_text(json.dumps(values))
    return folder
