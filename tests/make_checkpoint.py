"""A random Gemma 4 of a true size and its drafter, as checkpoints: for benchmarks, not for talk.

    python -m tests.make_checkpoint --size e2b --seed 0 OUT     # OUT/target and OUT/drafter
    python -m tests.make_checkpoint --size 12b --layers 6 OUT   # the same widths, fewer layers

Tensors are drawn and written a few rows at a time, so the full size needs disk but no memory.
"""

import json
import math
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
import torch
from torch import nn

from exporter.checkpoint.config import parse_drafter, parse_target
from exporter.config import load_size
from exporter.graph.drafter import Drafter
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.graph.weights import expected_tensors

SLIDING, FULL = "sliding_attention", "full_attention"
SHARD_BYTES = 1 << 30
CHUNK_BYTES = 16 << 20
SPREAD = 2.0  # of the integers that weights are made of
CLUSTER_LENGTH = 128  # tokens per centroid of the drafter's head, as in E2B's
TOKEN_ORDERING = "masked_embedding.token_ordering"
DECIDED = 2.5  # how far a router's logits spread
LAST_WORD = 16.0  # how much louder than the embedding the last layer's MLP is
ADDED = (  # norms of what a layer adds to the residual stream
    "post_attention_layernorm.weight",
    "post_feedforward_layernorm.weight",
    "post_per_layer_input_norm.weight",
)
TEXT_FILES = (
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
DTYPES = {torch.bfloat16: "BF16", torch.int64: "I64"}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class DrafterSize:
    """The drafter's own numbers; E2B's, unless said otherwise."""

    hidden_size: int = 256
    intermediate_size: int = 2048
    num_heads: int = 4
    clustered: bool = True  # a head of centroids


@dataclass(frozen=True, kw_only=True)
class Size:
    """E2B, unless said otherwise."""

    num_layers: int = 35
    num_shared: int = 20  # the last ones attend another's KV
    period: int = 5  # every so many-th layer is full
    vocab_size: int = 262144
    hidden_size: int = 1536
    intermediate_size: int = 6144
    doubled: bool = True  # shared layers have twice the intermediate size
    num_heads: int = 8
    num_kv_heads: int = 1
    num_global_kv_heads: int | None = None  # set: attention_k_eq_v
    head_dim: int = 256  # of sliding layers, half that of full ones
    window: int = 512
    per_layer_size: int = 256
    num_experts: int = 0
    expert_size: int = 0
    unified: bool = False  # the 12B's classes
    drafter: DrafterSize = field(default_factory=DrafterSize)

    def __post_init__(self) -> None:
        if self.num_layers < 4:
            raise click.UsageError(f"--layers is {self.num_layers}; both kinds twice need 4")
        if self.vocab_size % CLUSTER_LENGTH:
            raise click.UsageError(
                f"--vocab is {self.vocab_size}; the drafter's head needs a multiple of "
                f"{CLUSTER_LENGTH}"
            )

    @property
    def kinds(self) -> list[str]:
        """The last layer that owns KV is full, and the last one."""
        own = self.num_layers - self.num_shared
        return _kinds(own, self.period) + _kinds(self.num_shared, self.period)

    def reduced(self, num_layers: int | None, vocab_size: int | None) -> "Size":
        """The same widths; as many of its layers share as in the whole."""
        layers = self.num_layers if num_layers is None else num_layers
        return replace(
            self,
            num_layers=layers,
            num_shared=layers * self.num_shared // self.num_layers,
            vocab_size=self.vocab_size if vocab_size is None else vocab_size,
        )


_LARGE_DRAFTER = DrafterSize(
    hidden_size=1024, intermediate_size=8192, num_heads=16, clustered=False
)
_LARGE = Size(  # what the sizes without per-layer embeddings have in common
    num_shared=0, period=6, doubled=False, window=1024, per_layer_size=0, drafter=_LARGE_DRAFTER
)
E2B = Size()
SIZES = {
    "e2b": E2B,
    "e2b-stack": E2B.reduced(6, 8192),
    "e4b": Size(
        num_layers=42,
        num_shared=18,
        period=6,
        hidden_size=2560,
        intermediate_size=10240,
        doubled=False,
        num_kv_heads=2,
    ),
    "12b": replace(
        _LARGE,
        num_layers=48,
        hidden_size=3840,
        intermediate_size=15360,
        num_heads=16,
        num_kv_heads=8,
        num_global_kv_heads=1,
        unified=True,
    ),
    "26b-a4b": replace(
        _LARGE,
        num_layers=30,
        hidden_size=2816,
        intermediate_size=2112,
        num_heads=16,
        num_kv_heads=8,
        num_global_kv_heads=2,
        num_experts=128,
        expert_size=704,
    ),
    "31b": replace(
        _LARGE,
        num_layers=60,
        hidden_size=5376,
        intermediate_size=21504,
        num_heads=32,
        num_kv_heads=16,
        num_global_kv_heads=4,
        drafter=replace(_LARGE_DRAFTER, num_heads=32),
    ),
}
TEXT = {
    "attention_bias": False,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        SLIDING: {"rope_theta": 1e4, "rope_type": "default"},
    },
    "tie_word_embeddings": True,
}


def make_pair(out: Path, size: Size, seed: int) -> tuple[Path, Path]:
    """Write a target and its drafter: (target folder, drafter folder)."""
    target, drafter = out / "target", out / "drafter"
    target.mkdir(parents=True)
    drafter.mkdir()
    write_text_files(load_size("tiny").model, target, size.vocab_size)
    (target / "config.json").write_text(json.dumps(target_config(size), indent=2))
    (drafter / "config.json").write_text(json.dumps(drafter_config(size), indent=2))
    spec = parse_target(target_config(size), "target")
    drafter_spec = parse_drafter(drafter_config(size), "drafter", spec)
    modules: list[nn.Module] = [Embedder(spec), Target(spec)]
    if spec.per_layer_size:
        modules.append(PerLayerEmbedder(spec))
    write_tensors(target, expected_tensors(modules), seed)
    write_tensors(drafter, expected_tensors([Drafter(drafter_spec)]), seed + 1)
    return target, drafter


def target_config(size: Size) -> dict[str, Any]:
    """config.json of the target."""
    config = {
        **_text_config(size),
        "architectures": [f"{_family(size)}ForCausalLM"],
        "dtype": "bfloat16",
        "final_logit_softcapping": 30.0,
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "layer_types": size.kinds,
        "num_attention_heads": size.num_heads,
        "num_hidden_layers": size.num_layers,
        "num_kv_shared_layers": size.num_shared,
        "use_double_wide_mlp": size.doubled,
    }
    if size.num_experts:
        config |= {
            "enable_moe_block": True,
            "moe_intermediate_size": size.expert_size,
            "num_experts": size.num_experts,
            "top_k_experts": 8,
        }
    if size.unified:
        return config
    return config | {
        "hidden_size_per_layer_input": size.per_layer_size,
        "vocab_size_per_layer_input": size.vocab_size,
    }


def drafter_config(size: Size) -> dict[str, Any]:
    """config.json of its drafter; it scores as many tokens as the real one, if there are."""
    drafter = size.drafter
    num_centroids = size.vocab_size // CLUSTER_LENGTH
    text = {
        **_text_config(size),
        "final_logit_softcapping": None,
        "hidden_size": drafter.hidden_size,
        "intermediate_size": drafter.intermediate_size,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
        "num_attention_heads": drafter.num_heads,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": False,
    }
    if not size.unified:
        text |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    return {
        "architectures": [f"{_family(size)}AssistantForCausalLM"],
        "model_type": "gemma4_unified_assistant" if size.unified else "gemma4_assistant",
        "dtype": "bfloat16",
        "backbone_hidden_size": size.hidden_size,
        "centroid_intermediate_top_k": min(32, num_centroids),
        "num_centroids": num_centroids,
        "tie_word_embeddings": True,
        "use_ordered_embeddings": drafter.clustered,
        "text_config": text,
    }


def _text_config(size: Size) -> dict[str, Any]:
    """What both have in common."""
    return {
        **TEXT,
        "attention_k_eq_v": size.num_global_kv_heads is not None,
        "global_head_dim": 2 * size.head_dim,
        "head_dim": size.head_dim,
        "model_type": "gemma4_unified_text" if size.unified else "gemma4_text",
        "num_global_key_value_heads": size.num_global_kv_heads,
        "num_key_value_heads": size.num_kv_heads,
        "sliding_window": size.window,
        "vocab_size": size.vocab_size,
    }


def _family(size: Size) -> str:
    return "Gemma4Unified" if size.unified else "Gemma4"


def _kinds(count: int, period: int) -> list[str]:
    return [FULL if i % period == period - 1 or i == count - 1 else SLIDING for i in range(count)]


def write_tensors(folder: Path, shapes: Shapes, seed: int) -> None:
    """Shards and their index, in the Hugging Face names."""
    shards = _shards(shapes)
    gains = _gains(shapes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / file_name).open("wb") as file:
            _write_shard(file, {name: shapes[name] for name in names}, gains, seed)
        weight_map |= {_hub_name(name): file_name for name in names}
    total = sum(_num_bytes(name, shape) for name, shape in shapes.items())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _shards(shapes: Shapes) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, shape in shapes.items():
        num_bytes = _num_bytes(name, shape)
        if num_bytes > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= num_bytes
    return shards


def _gains(shapes: Shapes) -> dict[str, float]:
    """Norms that are not 1: all the layers together add as much as there is of the embedding.

    Else a residual stream of random weights is chaotic: what rounding does in the first layer, the
    last one shows, and a check could not tell it from a mistake. As the head is the embedding, the
    next token would then be the last one again; so the last MLP has the last word. And routers have
    an opinion, as trained ones do: with logits about alike, rounding would swap experts that count
    for an eighth each.
    """
    added = [name for name in shapes if name.endswith(ADDED)]
    last = max(
        (name for name in added if "feedforward" in name),
        key=lambda name: int(name.split(".")[1]),
        default="",
    )
    gains = {
        name: DECIDED * shape[0] ** 0.5
        for name, shape in shapes.items()
        if name.endswith("router.scale")
    }
    return gains | {name: len(added) ** -0.5 for name in added} | {last: LAST_WORD}


def _write_shard(file: BinaryIO, shapes: Shapes, gains: Mapping[str, float], seed: int) -> None:
    """The safetensors format: length of the header, header, tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + _num_bytes(name, shape)
        header[_hub_name(name)] = {
            "dtype": DTYPES[_dtype(name)],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name, shape in shapes.items():
        for chunk in _chunks(name, shape, seed):
            chunk = chunk * gains[name] if name in gains else chunk
            file.write(chunk.contiguous().view(torch.uint8).numpy().tobytes())


def _chunks(name: str, shape: tuple[int, ...], seed: int) -> Iterator[torch.Tensor]:
    """The flat tensor in parts; the same numbers whatever else the checkpoint holds."""
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    count = math.prod(shape)
    if name == TOKEN_ORDERING:
        yield torch.from_numpy(random.permutation(count))
    elif len(shape) < 2:  # norms and layer scalars
        yield torch.ones(max(count, 1), dtype=torch.bfloat16)
    else:
        num_rows, width = count // shape[-1], shape[-1]
        step = max(1, CHUNK_BYTES // (4 * width))
        for start in range(0, num_rows, step):
            yield _matrix_rows(min(step, num_rows - start), width, random).reshape(-1)


def _matrix_rows(num_rows: int, width: int, random: np.random.Generator) -> torch.Tensor:
    """Rows of length about 1: what a linear makes of a normalised state stays of size 1.

    As in a checkpoint trained for 4 bits, a row is a scale times integers that reach 7. So int4
    loses nothing but by its activations, and a check of it finds a weight in the wrong place.
    """
    scale = 1 / (SPREAD * math.sqrt(width))
    unit = 2.0 ** (math.floor(math.log2(scale)) - 4)  # 5 bits, and 3 of an integer: bfloat16 has 8
    values = (_integers() * (unit * round(scale / unit))).to(torch.bfloat16)
    # Looked up by random bytes, which are drawn ten times as fast as normal numbers.
    drawn = np.frombuffer(random.bytes(num_rows * width), np.uint8)
    rows = values.view(torch.int16).numpy()[drawn].reshape(num_rows, width)
    weights = torch.from_numpy(rows).view(torch.bfloat16)
    weights[:, 0] = values.max()
    return weights


@cache
def _integers() -> torch.Tensor:
    """256 of them, as often as a normal law has them."""
    quantiles = torch.special.ndtri((torch.arange(256, dtype=torch.float64) + 0.5) / 256)
    integers = (SPREAD * quantiles).round()
    integers[:2], integers[-2:] = torch.tensor([-7, -6]), torch.tensor([6, 7])  # else too rare
    return integers.to(torch.float32)


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if name == TOKEN_ORDERING else torch.bfloat16


def _num_bytes(name: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _dtype(name).itemsize


def _hub_name(name: str) -> str:
    outside = ("pre_projection.", "post_projection.", "masked_embedding.", "lm_head.")
    return name if name.startswith(outside) else f"model.{name}"


def write_text_files(source: Path, out: Path, vocab_size: int) -> None:
    """The tiny model's tokenizer, filled up with pieces no text contains."""
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    if len(vocab) > vocab_size:
        raise click.UsageError(f"--vocab is {vocab_size}; the tokenizer has {len(vocab)} pieces")
    vocab |= {f"<filler{index}>": index for index in range(len(vocab), vocab_size)}
    (out / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name in TEXT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


@click.command()
@click.option("--size", "name", type=click.Choice(sorted(SIZES)), required=True)
@click.option("--layers", type=int, help="Instead of the size's own number.")
@click.option("--vocab", type=int, help="Instead of the size's own number.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.argument("out", type=click.Path(path_type=Path))
def main(name: str, layers: int | None, vocab: int | None, seed: int, out: Path) -> None:
    """Write OUT/target and OUT/drafter."""
    for folder in make_pair(out, SIZES[name].reduced(layers, vocab), seed):
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
        click.echo(f"{folder}  {size_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
