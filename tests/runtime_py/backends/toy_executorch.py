"""Makes toy.pte, a toy target and drafter with the methods that the ExecuTorch backend expects.

Layers 0 and 1 own KV rows and belong to `fill`; layers 2 and 3 reuse those rows and belong to
`finish`. Even layers attend causally, odd ones through a mask; the drafter reads the rows of layer
1. The embeddings are int8, so that the quantized kernels are needed. The files are kept in git, so
that the backend is tested where torch is not installed.
`python -m tests.runtime_py.backends.toy_executorch` writes them and what the eager modules compute.
"""

import math
from pathlib import Path

import executorch.kernels.quantized  # noqa: F401  registers quantized_decomposed.*
import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import (
    EdgeCompileConfig,
    ExecutorchBackendConfig,
    to_edge_transform_and_lower,
)
from executorch.exir.passes import MemoryPlanningPass
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers llama.*
from torch import Tensor, nn

VOCAB_SIZE = 48
HIDDEN_SIZE = 16
NUM_HEADS = 2
HEAD_SIZE = 8
CACHE_LENGTH = 24
PREFILL_LENGTH = 8
VERIFY_LENGTH = 4
WINDOW = 5
NUM_OWNERS = 2  # the layers that write KV rows; layer i reads those of layer i % NUM_OWNERS
NUM_LAYERS = 4
PER_LAYER_SIZE = 4
BUNDLE = Path(__file__).parent / "toy.pte"
WITHOUT_DRAFTER = Path(__file__).parent / "toy_without_drafter.pte"
REFERENCE = Path(__file__).parent / "toy_executorch_reference.npz"


def _random(name: str, *shape: int) -> Tensor:
    seed = sum(ord(letter) * (index + 1) for index, letter in enumerate(name))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])


def _linear(name: str, size_in: int, size_out: int) -> nn.Linear:
    linear = nn.Linear(size_in, size_out, bias=False)
    linear.weight = nn.Parameter(_random(name, size_out, size_in))
    return linear


def _normalise(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


class Kv(nn.Module):
    """Rows [1, C, 1, E] of the owning layers; one module under one name in all methods."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(NUM_OWNERS):
            self.register_buffer(f"k_{index}", torch.zeros(1, CACHE_LENGTH, 1, HEAD_SIZE))
            self.register_buffer(f"v_{index}", torch.zeros(1, CACHE_LENGTH, 1, HEAD_SIZE))


class Table(nn.Module):
    """An int8 embedding: token_ids [1, T] -> float32 [1, T, size]."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        table = (_random(name, VOCAB_SIZE, size) * 100 * math.sqrt(size)).round().clamp(-127, 127)
        self.register_buffer("table", table.to(torch.int8))
        self.register_buffer("scales", torch.full((VOCAB_SIZE,), 0.01))

    def forward(self, token_ids: Tensor) -> Tensor:
        lookup = torch.ops.quantized_decomposed.embedding_byte.dtype
        embedded: Tensor = lookup(
            self.table, self.scales, None, -128, 127, token_ids, dtype=torch.float32
        )
        return embedded


class Toy(nn.Module):
    """Weights of target and drafter."""

    def __init__(self, *, per_layer: bool = True) -> None:
        super().__init__()
        self.uses_per_layer = per_layer
        self.table = Table("table", HIDDEN_SIZE)
        self.per_layer_table = Table("per_layer", NUM_LAYERS * PER_LAYER_SIZE)
        owners, layers = range(NUM_OWNERS), range(NUM_LAYERS)
        self.keys = nn.ModuleList(_linear(f"k{i}", HIDDEN_SIZE, HEAD_SIZE) for i in owners)
        self.values = nn.ModuleList(_linear(f"v{i}", HIDDEN_SIZE, HEAD_SIZE) for i in owners)
        self.queries = nn.ModuleList(_linear(f"q{i}", HIDDEN_SIZE, HIDDEN_SIZE) for i in layers)
        self.mlps = nn.ModuleList(_linear(f"m{i}", HIDDEN_SIZE, HIDDEN_SIZE) for i in layers)
        self.mixers = nn.ModuleList(_linear(f"p{i}", PER_LAYER_SIZE, HIDDEN_SIZE) for i in layers)
        self.head = _linear("head", HIDDEN_SIZE, VOCAB_SIZE)
        self.draft_in = _linear("draft_in", 2 * HIDDEN_SIZE, HIDDEN_SIZE)
        self.draft_query = _linear("draft_query", HIDDEN_SIZE, HIDDEN_SIZE)
        self.draft_head = _linear("draft_head", HIDDEN_SIZE, VOCAB_SIZE)


def _bounded(position: Tensor, smallest: int, largest: int) -> int:
    start = position.item()
    torch._check(start >= smallest)
    torch._check(start <= largest)
    return start


class Layers(nn.Module):
    """Consecutive layers of the target; those below NUM_OWNERS write KV rows."""

    def __init__(self, toy: Toy, kv: Kv, layers: range) -> None:
        super().__init__()
        self.toy, self.kv, self.layers = toy, kv, layers

    def run(self, x: Tensor, per_layer: list[Tensor], position: Tensor) -> Tensor:
        """x [1, T, D] and, if any, one [1, T, P] for each of the layers -> [1, T, D]."""
        num_tokens = x.shape[1]
        start = _bounded(position, 0, CACHE_LENGTH - 1)
        torch._check(start + num_tokens <= CACHE_LENGTH)
        distance = (position + torch.arange(num_tokens))[:, None] - torch.arange(CACHE_LENGTH)
        mask = torch.where((distance >= 0) & (distance < WINDOW), 0.0, -torch.inf)
        for place, layer in enumerate(self.layers):
            if per_layer:
                x = x + self.toy.mixers[layer](per_layer[place])
            normed = _normalise(x)
            if layer < NUM_OWNERS:
                self.write(layer, normed, start)
            keys = self.kv.get_buffer(f"k_{layer % NUM_OWNERS}")
            values = self.kv.get_buffer(f"v_{layer % NUM_OWNERS}")
            queries = self.toy.queries[layer](normed)
            queries = queries.reshape(1, num_tokens, NUM_HEADS, HEAD_SIZE)
            seen = (start, None, 0.0, True) if layer % 2 == 0 else (start, mask, 0.0, False)
            mixed = torch.ops.llama.custom_sdpa(queries, keys, values, *seen, 0.35)
            x = x + self.toy.mlps[layer](torch.tanh(mixed.reshape(1, num_tokens, HIDDEN_SIZE)))
        return x

    def write(self, layer: int, normed: Tensor, start: int) -> None:
        for name, linears in (("k", self.toy.keys), ("v", self.toy.values)):
            rows = linears[layer](normed).reshape(1, normed.shape[1], 1, HEAD_SIZE)
            torch.ops.llama.update_cache(rows, self.kv.get_buffer(f"{name}_{layer}"), start)


class Fill(Layers):
    def __init__(self, toy: Toy, kv: Kv) -> None:
        super().__init__(toy, kv, range(NUM_OWNERS))

    def forward(self, token_ids: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        x = self.toy.table(token_ids)
        if not self.toy.uses_per_layer:
            return (self.run(x, [], position),)
        rows = self.toy.per_layer_table(token_ids)
        rows = rows.reshape(1, token_ids.shape[1], NUM_LAYERS, PER_LAYER_SIZE)
        x = self.run(x, [rows[:, :, layer] for layer in self.layers], position)
        return x, rows[:, :, NUM_OWNERS:].clone()


class Finish(Layers):
    def __init__(self, toy: Toy, kv: Kv) -> None:
        super().__init__(toy, kv, range(NUM_OWNERS, NUM_LAYERS))

    def forward(self, hidden: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        *per_layer, position = rest
        rows = [per_layer[0][:, :, i] for i in range(len(self.layers))] if per_layer else []
        x = _normalise(self.run(hidden, rows, position))
        return self.toy.head(x), x


class Draft(nn.Module):
    def __init__(self, toy: Toy, kv: Kv) -> None:
        super().__init__()
        self.toy, self.kv = toy, kv

    def forward(self, token_id: Tensor, hidden: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        start = _bounded(position, 1, CACHE_LENGTH)
        x = self.toy.draft_in(torch.cat([self.toy.table(token_id), hidden], -1))
        queries = self.toy.draft_query(x).reshape(1, 1, NUM_HEADS, HEAD_SIZE)
        mixed = torch.ops.llama.custom_sdpa(
            queries, self.kv.k_1, self.kv.v_1, start - 1, None, 0.0, True, 0.35
        )
        x = _normalise(x + mixed.reshape(1, 1, HIDDEN_SIZE))
        return self.toy.draft_head(x), x


def write_bundle(path: Path, *, drafter: bool = True, per_layer: bool = True) -> None:
    toy, kv = Toy(per_layer=per_layer).eval(), Kv()
    tokens = torch.ones(1, 2, dtype=torch.int64)
    position = torch.ones(1, dtype=torch.int64)
    hidden = torch.zeros(1, 2, HIDDEN_SIZE)
    rows = [torch.zeros(1, 2, NUM_LAYERS - NUM_OWNERS, PER_LAYER_SIZE)] if per_layer else []
    prefill = {1: torch.export.Dim("length", min=1, max=PREFILL_LENGTH)}
    verify = {1: torch.export.Dim("length", min=1, max=VERIFY_LENGTH)}
    with torch.no_grad():
        methods = {
            "fill": torch.export.export(
                Fill(toy, kv), (tokens, position), dynamic_shapes=(prefill, None), strict=False
            ),
            "finish": torch.export.export(
                Finish(toy, kv),
                (hidden, *rows, position),
                dynamic_shapes=(verify, (*(verify for _ in rows), None)),
                strict=False,
            ),
        }
        if drafter:
            sample = (tokens[:, :1], hidden[:, :1], position)
            methods["draft"] = torch.export.export(Draft(toy, kv), sample, strict=False)
    numbers = {
        "format_version": 2,
        "context_length": CACHE_LENGTH,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "max_prefill_length": PREFILL_LENGTH,
        "max_verify_length": VERIFY_LENGTH,
        "has_drafter": int(drafter),
    }
    edge = to_edge_transform_and_lower(
        methods,
        partitioner={name: [XnnpackPartitioner()] for name in methods},
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods=numbers,
    )
    planning = MemoryPlanningPass(alloc_graph_input=False, share_mutable_buffers=True)
    program = edge.to_executorch(
        ExecutorchBackendConfig(
            memory_planning_pass=planning,
            emit_mutable_buffer_names=True,
            do_quant_fusion_and_const_prop=False,
        )
    )
    with path.open("wb") as file:
        program.write_to_file(file)


class Twins(nn.Module):
    """Two layers whose int8 weights are equal and whose scales are not."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = _linear("twin", 64, 32), _linear("twin", 64, 32)
        self.large.weight = nn.Parameter(self.small.weight * 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.small(x), self.large(x)


def write_twins(path: Path) -> list[np.ndarray]:
    """Twins as 8da8w, run on [1, 2, 64] ones. Returns what the eager module computes."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis

    twins, sample = Twins().eval(), (torch.ones(1, 2, 64),)
    quantize_(
        twins,
        Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int8, weight_granularity=PerAxis(0)
        ),
    )
    with torch.no_grad():
        expected = [output.numpy() for output in twins(*sample)]
        traced = torch.export.export(twins, sample, strict=False)
    edge = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
    planning = MemoryPlanningPass(alloc_graph_input=False)
    program = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    path.write_bytes(program.buffer)
    return expected


def record(path: Path) -> None:
    """What the eager modules compute for one sequence that fills the cache."""
    toy, kv = Toy().eval(), Kv()
    token_ids = torch.randint(
        VOCAB_SIZE, (1, CACHE_LENGTH), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        start = torch.zeros(1, dtype=torch.int64)
        logits, hidden = Finish(toy, kv)(*Fill(toy, kv)(token_ids, start), start)
        draft = Draft(toy, kv)
        drafts = [
            draft(token_ids[:, i : i + 1], hidden[:, i - 1 : i], torch.tensor([i]))
            for i in range(1, CACHE_LENGTH)
        ]
    np.savez(
        path,
        token_ids=token_ids[0].numpy(),
        logits=logits[0].numpy(),
        hidden=hidden[0].numpy(),
        draft_logits=np.stack([step[0][0, 0].numpy() for step in drafts]),
        draft_hidden=np.stack([step[1][0, 0].numpy() for step in drafts]),
    )


if __name__ == "__main__":
    write_bundle(BUNDLE)
    write_bundle(WITHOUT_DRAFTER, drafter=False)
    record(REFERENCE)
