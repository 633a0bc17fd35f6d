"""Random small Gemma 4 pairs: valid ones, and ways to spoil them."""

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from exporter.config import ExportConfig, GraphShapes, ModelSource
from tests.exporter import tiny_models
from tests.exporter.tiny_models import Shape

CONTEXT = 96  # room for a prompt and the 64 recorded tokens
PROMPTS = ("t9 t8 t7 t9 t8 t7", "t11", "t6 t5 t4 t10 t9 t8 t12 t13 t14 t15 t9 t8 t10 t5 t4 t7")


@dataclass(frozen=True)
class Case:
    """One valid checkpoint pair and how it is exported."""

    shape: Shape
    multimodal: bool
    dtype: torch.dtype
    sharded: bool
    has_drafter: bool
    seed: int
    suppressed: tuple[int, ...] = ()  # tokens that are never said
    placeholder: int | None = None  # the token of an image's place, if multimodal


def draw_case(seed: int) -> Case:
    """Any combination of features that transformers can build."""
    draw = random.Random(seed)
    unified = draw.random() < 0.3
    heads = draw.choice([1, 2, 3, 4, 6, 8])
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    vocab_size = draw.choice([48, 60, 96, 128, 200])
    own, shared = _layers(draw)
    shape = Shape(
        layers=own + shared,
        vocab_size=vocab_size,
        hidden_size=draw.choice([16, 24, 30, 32, 40, 64]),
        intermediate_size=draw.choice([6, 20, 32, 48, 66]),
        heads=heads,
        kv_heads=draw.choice(divisors),
        global_kv_heads=draw.choice([None, *divisors]),
        head_dim=draw.choice([2, 4, 6, 8, 16, 32]),
        global_head_dim=draw.choice([4, 8, 16, 24, 64]),
        # Not 1: transformers' cached decoding then differs from its own pass over the text.
        window=draw.choice([2, 3, 4, 6, 16, 40, 200]),
        shared=len(shared),
        doubled=draw.random() < 0.5,
        per_layer=0 if unified else draw.choice([0, 0, 4, 6, 16]),
        softcap=draw.choice([None, 30.0, 5.0]),
        eps=draw.choice([1e-6, 1e-6, 1e-2]),
        tied=draw.random() < 0.7,
        unified=unified,
        experts=0 if unified else draw.choice([0, 0, 0, 4, 6]),
        active_experts=draw.choice([1, 2, 4]),
        drafter_layers=draw.choice(["sssf", "sf", "sf", "f", "fsf"]),
        drafter_hidden=draw.choice([8, 16, 24, 30]),
        centroids=draw.choice([0, 0, *[n for n in (4, 6, 12, 20) if vocab_size % n == 0]]),
        top_k=draw.choice([1, 2, 4]),
    )
    return Case(
        shape=shape,
        multimodal=draw.random() < 0.4,
        dtype=draw.choice([torch.float32, torch.bfloat16, torch.float16]),
        sharded=draw.random() < 0.3,
        has_drafter=draw.random() < 0.85,
        seed=seed,
        suppressed=tuple(draw.sample(range(vocab_size), draw.choice([0, 0, 1, 9]))),
        placeholder=draw.choice([None, 8]),
    )


def _layers(draw: random.Random) -> tuple[str, str]:
    """Those with KV of their own, both kinds among them, and those without; the last one is full.

    Few: a layer more costs seconds of tracing.
    """
    own = "".join(draw.sample("sf", 2)) + "".join(draw.choices("sssf", k=draw.choice([0, 0, 0, 2])))
    shared = "".join(draw.choices("sf", k=draw.choice([0, 0, 1, 2])))
    if shared:
        return own, shared[:-1] + "f"
    return own.removesuffix("f") + "f", ""


def save_case(case: Case, folder: Path) -> ExportConfig:
    """Write the checkpoints with a tokenizer and prompts; returns their export to ONNX."""
    shards = "20KB" if case.sharded else "1GB"
    target = tiny_models.target_model(case.shape, case.seed, case.multimodal)
    tiny_models.save(_calm(target).to(case.dtype), folder / "target", shards)
    if case.has_drafter:
        drafter = tiny_models.drafter_model(case.shape, case.seed + 1)
        tiny_models.save(_calm(drafter).to(case.dtype), folder / "drafter", shards)
    _set(folder / "target" / "generation_config.json", suppress_tokens=list(case.suppressed))
    if case.multimodal and case.placeholder is not None:
        _set(folder / "target" / "config.json", image_token_id=case.placeholder)
    write_tokenizer(folder / "target", case.shape.vocab_size)
    prompts = folder / "prompts.jsonl"
    rows = [json.dumps({"kind": "text", "text": text}) for text in PROMPTS]
    prompts.write_text("\n".join(rows))
    return ExportConfig(
        source=ModelSource(
            name=f"fuzz-{case.seed}",
            model=folder / "target",
            drafter=folder / "drafter" if case.has_drafter else None,
            prompts=prompts,
        ),
        output=folder / "bundle",
        overwrite=False,
        device="desktop",
        runtimes=("onnx",),
        recipe="float32",
        shapes=GraphShapes(prefill_lengths=(16,), verify_widths=(2, 4), cache_length=CONTEXT),
        draft_length=3,
    )


def _set(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def _calm(model: Any) -> Any:
    """Attention scores of size 1, as trained models have: larger ones multiply rounding errors."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("q_norm.weight"):
                weight.mul_(weight.numel() ** -0.5)
    return model


def with_recipe(config: ExportConfig, recipe: str) -> ExportConfig:
    output = config.output.with_name(f"bundle-{recipe}")
    return dataclasses.replace(config, recipe=recipe, output=output)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """One word for each token: t0 t1 …, after the special ones."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"t{index}" for index in range(4, vocab_size))]
    words = models.WordLevel({name: index for index, name in enumerate(names)}, "<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(names[:4])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
