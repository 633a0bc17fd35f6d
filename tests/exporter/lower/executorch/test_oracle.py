"""A small program says what torch's public operators say: delegates, KV rows, shared buffers.

A new release of ExecuTorch is admitted only if this still holds.
"""

import pytest
import torch
from torch import Tensor, nn

from exporter.graph.spec import LayerSpec
from exporter.lower.executorch.kv_cache import (
    KVBuffers,
    PresentRows,
    drafter_views,
    read_position,
    target_views,
)
from exporter.lower.executorch.program import Method, write_program
from exporter.lower.executorch.weights import Integers, QuantizedLinear

NUM_HEADS, HEAD_DIM, CACHE_LENGTH, WINDOW, MOST_TOKENS = 2, 8, 24, 4, 4
WIDTH = NUM_HEADS * HEAD_DIM
CHUNKS = (3, 1, 4, 2, 1)  # tokens per call; more rows in all than the window


def layer(index: int, kind) -> LayerSpec:
    return LayerSpec(
        index=index,
        kind=kind,
        num_heads=NUM_HEADS,
        num_kv_heads=1,
        head_dim=HEAD_DIM,
        intermediate_size=WIDTH,
        kv_source=index,
        values_from_keys=False,
    )


LAYERS = (layer(0, "sliding_attention"), layer(1, "full_attention"))


class Projection(nn.Module):
    """x [1, T, D] -> queries [1, T, H, E], keys and values [1, T, 1, E], of an int8 matrix."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.manual_seed(seed)
        rows = WIDTH + 2 * HEAD_DIM
        values = torch.randint(-127, 128, (rows, WIDTH), generator=generator).to(torch.int8)
        self.linear = QuantizedLinear(Integers(values, torch.full((rows,), 0.01)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed = self.linear(x).reshape(1, x.shape[1], NUM_HEADS + 2, HEAD_DIM)
        return mixed[:, :, :NUM_HEADS], mixed[:, :, NUM_HEADS : NUM_HEADS + 1], mixed[:, :, -1:]


class Writes(nn.Module):
    """x [1, T, D], position [1] -> what both layers mix [1, T, 2 * D]."""

    def __init__(self, kv: KVBuffers, project: Projection) -> None:
        super().__init__()
        self.kv, self.project = kv, project

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        start = read_position(position, 0, CACHE_LENGTH - 1)
        views = target_views(position, start, x.shape[1], (WINDOW, CACHE_LENGTH))
        rows = PresentRows(self.kv, LAYERS, views, start)
        queries, keys, values = self.project(x)
        for one in LAYERS:
            rows.write(one.index, keys, values, position)
        return joined(rows, queries)


class Reads(nn.Module):
    """The same of one token over the committed rows, as a drafter; writes nothing."""

    def __init__(self, kv: KVBuffers, project: Projection) -> None:
        super().__init__()
        self.kv, self.project = kv, project

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        start = read_position(position, 1, CACHE_LENGTH)
        rows = PresentRows(self.kv, LAYERS, drafter_views(position, start, WINDOW), start)
        return joined(rows, self.project(x)[0])


def joined(rows: PresentRows, queries: Tensor) -> Tensor:
    mixed = [rows.attend(one.index, queries, None).flatten(2) for one in LAYERS]
    return torch.cat(mixed, dim=-1)


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    import executorch.kernels.quantized  # noqa: F401
    from executorch.runtime import Runtime

    kv = KVBuffers(LAYERS, CACHE_LENGTH)
    num_tokens = torch.export.Dim("T", min=1, max=MOST_TOKENS)
    position = torch.tensor([1])
    found = {
        "writes": Method(
            Writes(kv, Projection(1)).eval(),
            (torch.zeros(1, MOST_TOKENS, WIDTH), position),
            ({1: num_tokens}, None),
        ),
        "reads": Method(
            Reads(kv, Projection(2)).eval(), (torch.zeros(1, 1, WIDTH), position), None
        ),
    }
    path = tmp_path_factory.mktemp("oracle") / "model.pte"
    write_program(found, {"answer": 42}, {}, path, lambda _done, _total: None)
    program = Runtime.get().load_program(path)
    return {name: program.load_method(name) for name in (*found, "answer")}


def attention(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """By torch: queries [T, H, E], keys and values [R, 1, E], visible [T, R] -> [T, H * E]."""
    parts = (tensor.transpose(0, 1) for tensor in (queries, keys, values))
    mixed = nn.functional.scaled_dot_product_attention(*parts, attn_mask=visible, scale=1.0)
    return mixed.transpose(0, 1).flatten(1)


@torch.no_grad()
def test_a_program_says_what_torch_says(methods):
    """In calls of several widths, and what one method writes the other reads."""
    length = sum(CHUNKS)
    x = torch.randn(1, length, WIDTH, generator=torch.manual_seed(3))
    queries, keys, values = (part[0] for part in Projection(1)(x))
    rows = torch.arange(length)
    distance = rows[:, None] - rows
    expected = torch.cat(
        [attention(queries, keys, values, (distance >= 0) & (distance < w)) for w in (WINDOW, 99)],
        dim=-1,
    )
    position = 0
    for width in CHUNKS:
        chunk = x[:, position : position + width]
        (found,) = methods["writes"].execute([chunk, torch.tensor([position])])
        torch.testing.assert_close(
            found[0], expected[position : position + width], rtol=1e-4, atol=1e-4
        )
        position += width
        (found,) = methods["reads"].execute([chunk[:, -1:], torch.tensor([position])])
        drafter = Projection(2)(chunk[:, -1:])[0][0]
        seen = rows[:position]
        wanted = [
            attention(drafter, keys[:position], values[:position], seen[None] >= position - w)
            for w in (WINDOW + 1, 99)
        ]
        torch.testing.assert_close(found[0], torch.cat(wanted, dim=-1), rtol=1e-4, atol=1e-4)
    assert methods["answer"].execute([]) == [42]
