"""Makes toy.litertlm, a toy target and drafter with the official signature contract.

toy_int8.litertlm is the same with int8 KV rows.

Two attention layers own KV rows, a third reuses those of the second; the drafter reads both.
The bundles are kept in git (170 KB each), so that the backend is tested where torch is not
installed. `python -m tests.runtime_py.backends.toy_litert` writes them and what the eager modules
compute.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exporter.lower.litert.int8_rows import store_int8_rows
from exporter.quantize import KvRange
from tests.exporter.graph.eager import rounded

VOCAB_SIZE = 48
HIDDEN_SIZE = 16
PER_LAYER_SIZE = 4
NUM_LAYERS = 3
HEAD_SIZE = 8
NUM_HEADS = 2
CACHE_LENGTH = 24
KV_SOURCE = (0, 1, 1)  # the layer whose KV rows each layer reads
KV_LAYERS = (0, 1)
SIGNATURES = {"prefill_8": 8, "prefill_4": 4, "decode": 1, "verify": 4, "verify_2": 2}
BUNDLE = Path(__file__).parent / "toy.litertlm"
REFERENCE = Path(__file__).parent / "toy_reference.npz"
INT8_BUNDLE = Path(__file__).parent / "toy_int8.litertlm"
INT8_REFERENCE = Path(__file__).parent / "toy_int8_reference.npz"
INT8_ROWS = {layer: KvRange(keys=3.0, values=2.0) for layer in KV_LAYERS}  # a few are clipped

Kv = dict[str, Tensor]


def zero_kv() -> Kv:
    """kv_cache tensors by short name: k_i [1, G, C, E] and v_i [1, G, E, C]."""
    keys = {f"k_{i}": torch.zeros(1, 1, CACHE_LENGTH, HEAD_SIZE) for i in KV_LAYERS}
    return keys | {f"v_{i}": torch.zeros(1, 1, HEAD_SIZE, CACHE_LENGTH) for i in KV_LAYERS}


def causal_mask(position: int, length: int) -> Tensor:
    rows = torch.arange(position, position + length)[:, None]
    hidden = torch.arange(CACHE_LENGTH)[None, :] > rows
    return hidden.to(torch.float32)[None, None] * -1e9


def _weight(name: str, *shape: int) -> nn.Parameter:
    seed = sum(ord(letter) * (index + 1) for index, letter in enumerate(name))
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(shape[-1]))


def _normalise(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def _write_rows(cache: Tensor, rows: Tensor, input_pos: Tensor, axis: int) -> Tensor:
    from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice

    starts = [torch.zeros((), dtype=torch.int32) for _ in range(4)]
    starts[axis] = input_pos[0]
    return dynamic_update_slice(cache, rows, starts)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(HEAD_SIZE)  # [1, H, T, C]
    return torch.softmax(scores + mask.clamp(min=-1e9), -1) @ values.transpose(-1, -2)


class Attention(nn.Module):
    def __init__(self, name: str, owns_kv: bool) -> None:
        super().__init__()
        self.owns_kv = owns_kv
        self.kv_range: KvRange | None = None  # of int8 rows
        self.q = _weight(f"{name}.q", NUM_HEADS * HEAD_SIZE, HIDDEN_SIZE)
        self.o = _weight(f"{name}.o", HIDDEN_SIZE, NUM_HEADS * HEAD_SIZE)
        if owns_kv:
            self.k = _weight(f"{name}.k", HEAD_SIZE, HIDDEN_SIZE)
            self.v = _weight(f"{name}.v", HEAD_SIZE, HIDDEN_SIZE)

    def write(self, x: Tensor, kv: Kv, layer: int, input_pos: Tensor) -> None:
        position = input_pos.to(torch.float32)[None, :, None] * 0.1
        keys = nn.functional.linear(x, self.k) * torch.cos(position)
        values = nn.functional.linear(x, self.v)
        if self.kv_range is not None:
            keys = rounded(keys, self.kv_range.key_scale)
            values = rounded(values, self.kv_range.value_scale)
        kv[f"k_{layer}"] = _write_rows(kv[f"k_{layer}"], keys[None], input_pos, 2)
        kv[f"v_{layer}"] = _write_rows(
            kv[f"v_{layer}"], values[None].transpose(-1, -2), input_pos, 3
        )

    def forward(self, x: Tensor, kv: Kv, layer: int, mask: Tensor) -> Tensor:
        num_tokens = x.shape[1]
        queries = nn.functional.linear(x, self.q)
        queries = queries.view(1, num_tokens, NUM_HEADS, HEAD_SIZE).transpose(1, 2)
        mixed = _attend(queries, kv[f"k_{layer}"], kv[f"v_{layer}"], mask)
        mixed = mixed.transpose(1, 2).reshape(1, num_tokens, NUM_HEADS * HEAD_SIZE)
        return nn.functional.linear(mixed, self.o)


class Target(nn.Module):
    def __init__(self, *, per_layer: bool, prefill: bool) -> None:
        super().__init__()
        self.prefill = prefill
        self.layers = nn.ModuleList(
            Attention(f"target.{i}", KV_SOURCE[i] == i) for i in range(NUM_LAYERS)
        )
        self.per_layer = _weight("target.per_layer", HIDDEN_SIZE, PER_LAYER_SIZE)
        self.head = _weight("target.head", VOCAB_SIZE, HIDDEN_SIZE)
        self.uses_per_layer = per_layer

    def forward(
        self,
        embeddings: Tensor,
        input_pos: Tensor,
        mask: Tensor,
        kv_cache: Kv,
        per_layer_embeddings: Tensor | None = None,
    ) -> dict[str, Tensor | Kv]:
        kv = dict(kv_cache)
        x = embeddings
        for index, layer in enumerate(self.layers):
            if per_layer_embeddings is not None:
                x = x + nn.functional.linear(per_layer_embeddings[:, :, index], self.per_layer)
            normalised = _normalise(x)
            if layer.owns_kv:
                layer.write(normalised, kv, index, input_pos)
            x = x + layer(normalised, kv, KV_SOURCE[index], mask)
        if self.prefill:
            return {"kv_cache": kv}
        activations = _normalise(x)
        logits = nn.functional.linear(activations, self.head)
        return {"logits": logits, "activations": activations, "kv_cache": kv}


class Drafter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pre = _weight("drafter.pre", HIDDEN_SIZE, 2 * HIDDEN_SIZE)
        self.layers = nn.ModuleList(Attention(f"drafter.{i}", False) for i in KV_LAYERS)
        self.head = _weight("drafter.head", VOCAB_SIZE, HIDDEN_SIZE)
        self.post = _weight("drafter.post", HIDDEN_SIZE, HIDDEN_SIZE)

    def forward(
        self, activations: Tensor, input_pos: Tensor, mask: Tensor, kv_cache: Kv
    ) -> dict[str, Tensor]:
        """Unlike a real drafter, this one sees whatever the caller's mask shows it."""
        x = nn.functional.linear(activations, self.pre)
        x = x * torch.cos(input_pos.to(torch.float32) * 0.1)
        for layer, module in zip(KV_LAYERS, self.layers, strict=True):
            x = x + module(_normalise(x), kv_cache, layer, mask)
        x = _normalise(x)
        return {
            "logits": nn.functional.linear(x, self.head),
            "projected_activations": nn.functional.linear(x, self.post),
        }


class Rows(nn.Module):
    """Embedding table: token_ids [1, 1] -> rows * scale, in the given trailing shape."""

    def __init__(self, name: str, trailing: Sequence[int]) -> None:
        super().__init__()
        self.table = _weight(name, VOCAB_SIZE, math.prod(trailing))
        self.trailing = tuple(trailing)
        self.scale = math.sqrt(trailing[-1])

    def forward(self, token_ids: Tensor) -> dict[str, Tensor]:
        rows = nn.functional.embedding(token_ids, self.table) * self.scale
        return {"embeddings": rows.reshape(1, -1, *self.trailing)}


def embedder() -> Rows:
    return Rows("embed", (HIDDEN_SIZE,))


def per_layer_embedder() -> Rows:
    return Rows("embed_per_layer", (NUM_LAYERS, PER_LAYER_SIZE))


def _sample(num_tokens: int, per_layer: bool) -> dict[str, Tensor | Kv]:
    sample: dict[str, Tensor | Kv] = {
        "embeddings": torch.zeros(1, num_tokens, HIDDEN_SIZE),
        "input_pos": torch.arange(num_tokens, dtype=torch.int32),
        "mask": causal_mask(0, num_tokens),
        "kv_cache": zero_kv(),
    }
    if per_layer:
        sample["per_layer_embeddings"] = torch.zeros(1, num_tokens, NUM_LAYERS, PER_LAYER_SIZE)
    return sample


def lower_target(path: Path, signatures: dict[str, int], *, per_layer: bool) -> None:
    import litert_torch

    pending = litert_torch
    for name, num_tokens in signatures.items():
        module = Target(per_layer=per_layer, prefill=name.startswith("prefill")).eval()
        sample = _sample(num_tokens, per_layer)
        pending = pending.signature(name, module, sample_kwargs=sample)
    pending.convert(strict_export=False).export(str(path))


def lower_drafter(path: Path) -> None:
    import litert_torch

    sample = {
        "activations": torch.zeros(1, 1, 2 * HIDDEN_SIZE),
        "input_pos": torch.zeros(1, dtype=torch.int32),
        "mask": causal_mask(0, 1),
        "kv_cache": zero_kv(),
    }
    pending = litert_torch.signature("mtp_drafter", Drafter().eval(), sample_kwargs=sample)
    pending.convert(strict_export=False).export(str(path))


def lower_rows(path: Path, signature: str, module: Rows) -> None:
    import litert_torch

    sample = {"token_ids": torch.zeros(1, 1, dtype=torch.int32)}
    pending = litert_torch.signature(signature, module.eval(), sample_kwargs=sample)
    pending.convert(strict_export=False).export(str(path))


def write_bundle(path: Path, *, per_layer: bool = True, int8: bool = False) -> None:
    import litert_lm_builder
    from litert_lm_builder import TfLiteModelType

    builder = litert_lm_builder.LitertLmFileBuilder()
    builder.add_system_metadata(
        litert_lm_builder.Metadata(key="Authors", value="toy", dtype=litert_lm_builder.DType.STRING)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lower_target(folder / "target", SIGNATURES, per_layer=per_layer)
        lower_drafter(folder / "drafter")
        if int8:
            for model in ("target", "drafter"):
                store_int8_rows(folder / model, INT8_ROWS)
        lower_rows(folder / "embedder", "embedder", embedder())
        builder.add_tflite_model(str(folder / "embedder"), TfLiteModelType.EMBEDDER)
        if per_layer:
            lower_rows(folder / "per_layer", "per_layer_embedder", per_layer_embedder())
            builder.add_tflite_model(str(folder / "per_layer"), TfLiteModelType.PER_LAYER_EMBEDDER)
        builder.add_tflite_model(str(folder / "target"), TfLiteModelType.PREFILL_DECODE)
        builder.add_tflite_model(str(folder / "drafter"), TfLiteModelType.MTP_DRAFTER)
        with path.open("wb") as file:
            builder.build(file)


@torch.no_grad()
def record(path: Path, *, int8: bool = False) -> None:
    """What the eager modules compute, token by token: the oracle of the backend tests."""
    target, drafter = Target(per_layer=True, prefill=False), Drafter()
    if int8:
        for layer, kv_range in INT8_ROWS.items():
            target.layers[layer].kv_range = kv_range
    rows, per_layer_rows = embedder(), per_layer_embedder()
    token_ids = torch.randint(
        VOCAB_SIZE, (CACHE_LENGTH,), generator=torch.Generator().manual_seed(7)
    )
    kv, logits, hidden = zero_kv(), [], []
    draft_logits, draft_hidden = [], []
    for position, token_id in enumerate(token_ids):
        one = token_id.view(1, 1)
        embedding = rows(one)["embeddings"]
        if position:
            drafted = drafter(
                torch.cat([embedding, hidden[-1]], -1),
                torch.tensor([position], dtype=torch.int32),
                causal_mask(position - 1, 1),
                kv,
            )
            draft_logits.append(drafted["logits"])
            draft_hidden.append(drafted["projected_activations"])
        step = target(
            embedding,
            torch.tensor([position], dtype=torch.int32),
            causal_mask(position, 1),
            kv,
            per_layer_rows(one)["embeddings"],
        )
        kv = step["kv_cache"]
        logits.append(step["logits"])
        hidden.append(step["activations"])
    np.savez(
        path,
        token_ids=token_ids.numpy(),
        logits=torch.cat(logits, 1)[0].numpy(),  # row i follows token i
        hidden=torch.cat(hidden, 1)[0].numpy(),
        draft_logits=torch.cat(draft_logits, 1)[0].numpy(),  # row i is drafted at position i + 1
        draft_hidden=torch.cat(draft_hidden, 1)[0].numpy(),
    )


if __name__ == "__main__":
    write_bundle(BUNDLE)
    record(REFERENCE)
    write_bundle(INT8_BUNDLE, int8=True)
    record(INT8_REFERENCE, int8=True)
