"""Makes toy.pte, a toy target and drafter with the methods that the ExecuTorch backend expects.

Layer 0 attends causally, layer 1 through a mask; the drafter reads the rows of layer 1. The token
embedding is int8, so that the quantized kernels are needed. The file is kept in git, so that the
backend is tested where torch is not installed.
`python -m tests.runtime_py.backends.toy_executorch` writes it and what the eager modules compute.
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
NUM_LAYERS = 2
BUNDLE = Path(__file__).parent / "toy.pte"
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
    """Rows [1, C, 1, E] of both layers; one module under one name in all methods."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(NUM_LAYERS):
            self.register_buffer(f"k_{index}", torch.zeros(1, CACHE_LENGTH, 1, HEAD_SIZE))
            self.register_buffer(f"v_{index}", torch.zeros(1, CACHE_LENGTH, 1, HEAD_SIZE))


class Toy(nn.Module):
    """Weights of target and drafter."""

    def __init__(self) -> None:
        super().__init__()
        table = (_random("table", VOCAB_SIZE, HIDDEN_SIZE) * 400).round().clamp(-127, 127)
        self.register_buffer("table", table.to(torch.int8))
        self.register_buffer("scales", torch.full((VOCAB_SIZE,), 0.01))
        layers = range(NUM_LAYERS)
        self.queries = nn.ModuleList(_linear(f"q{i}", HIDDEN_SIZE, HIDDEN_SIZE) for i in layers)
        self.keys = nn.ModuleList(_linear(f"k{i}", HIDDEN_SIZE, HEAD_SIZE) for i in layers)
        self.values = nn.ModuleList(_linear(f"v{i}", HIDDEN_SIZE, HEAD_SIZE) for i in layers)
        self.mlps = nn.ModuleList(_linear(f"m{i}", HIDDEN_SIZE, HIDDEN_SIZE) for i in layers)
        self.head = _linear("head", HIDDEN_SIZE, VOCAB_SIZE)
        self.draft_in = _linear("draft_in", 2 * HIDDEN_SIZE, HIDDEN_SIZE)
        self.draft_query = _linear("draft_query", HIDDEN_SIZE, HIDDEN_SIZE)
        self.draft_head = _linear("draft_head", HIDDEN_SIZE, VOCAB_SIZE)

    def embed(self, token_ids: Tensor) -> Tensor:
        lookup = torch.ops.quantized_decomposed.embedding_byte.dtype
        embedded: Tensor = lookup(
            self.table, self.scales, None, -128, 127, token_ids, dtype=torch.float32
        )
        return embedded


def _bounded(position: Tensor, smallest: int, largest: int) -> int:
    start = position.item()
    torch._check(start >= smallest)
    torch._check(start <= largest)
    return start


class Forward(nn.Module):
    def __init__(self, toy: Toy, kv: Kv) -> None:
        super().__init__()
        self.toy, self.kv = toy, kv

    def rows(self, token_ids: Tensor, position: Tensor) -> Tensor:
        num_tokens = token_ids.shape[1]
        start = _bounded(position, 0, CACHE_LENGTH - 1)
        torch._check(start + num_tokens <= CACHE_LENGTH)
        distance = (position + torch.arange(num_tokens))[:, None] - torch.arange(CACHE_LENGTH)
        mask = torch.where((distance >= 0) & (distance < WINDOW), 0.0, -torch.inf)
        x = self.toy.embed(token_ids)
        for index in range(NUM_LAYERS):
            normed = _normalise(x)
            keys, values = getattr(self.kv, f"k_{index}"), getattr(self.kv, f"v_{index}")
            for linear, cache in ((self.toy.keys, keys), (self.toy.values, values)):
                rows = linear[index](normed).reshape(1, num_tokens, 1, HEAD_SIZE)
                torch.ops.llama.update_cache(rows, cache, start)
            queries = self.toy.queries[index](normed)
            queries = queries.reshape(1, num_tokens, NUM_HEADS, HEAD_SIZE)
            seen = (start, None, 0.0, True) if index == 0 else (start, mask, 0.0, False)
            mixed = torch.ops.llama.custom_sdpa(queries, keys, values, *seen, 0.35)
            x = x + self.toy.mlps[index](torch.tanh(mixed.reshape(1, num_tokens, HIDDEN_SIZE)))
        return _normalise(x)

    def forward(self, token_ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        x = self.rows(token_ids, position)
        return self.toy.head(x), x


class Fill(Forward):
    def forward(self, token_ids: Tensor, position: Tensor) -> Tensor:
        self.rows(token_ids, position)
        return position + token_ids.shape[1]


class Draft(nn.Module):
    def __init__(self, toy: Toy, kv: Kv) -> None:
        super().__init__()
        self.toy, self.kv = toy, kv

    def forward(self, token_id: Tensor, hidden: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        start = _bounded(position, 1, CACHE_LENGTH)
        x = self.toy.draft_in(torch.cat([self.toy.embed(token_id), hidden], -1))
        queries = self.toy.draft_query(x).reshape(1, 1, NUM_HEADS, HEAD_SIZE)
        mixed = torch.ops.llama.custom_sdpa(
            queries, self.kv.k_1, self.kv.v_1, start - 1, None, 0.0, True, 0.35
        )
        x = _normalise(x + mixed.reshape(1, 1, HIDDEN_SIZE))
        return self.toy.draft_head(x), x


def write_bundle(
    path: Path, *, drafter: bool = True, constants: dict[str, int] | None = None
) -> None:
    """The toy program; `constants` replaces some of its numbers."""
    toy, kv = Toy().eval(), Kv()
    tokens = torch.ones(1, 2, dtype=torch.int64)
    position = torch.ones(1, dtype=torch.int64)

    def dynamic(module: nn.Module, longest: int) -> torch.export.ExportedProgram:
        length = torch.export.Dim("length", min=1, max=longest)
        return torch.export.export(
            module, (tokens, position), dynamic_shapes=({1: length}, None), strict=False
        )

    with torch.no_grad():
        methods = {
            "fill": dynamic(Fill(toy, kv), PREFILL_LENGTH),
            "forward": dynamic(Forward(toy, kv), VERIFY_LENGTH),
        }
        if drafter:
            sample = (tokens[:, :1], torch.zeros(1, 1, HIDDEN_SIZE), position)
            methods["draft"] = torch.export.export(Draft(toy, kv), sample, strict=False)
    numbers = {
        "format_version": 1,
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
        constant_methods=numbers | (constants or {}),
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
        logits, hidden = Forward(toy, kv)(token_ids, torch.zeros(1, dtype=torch.int64))
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
    record(REFERENCE)
