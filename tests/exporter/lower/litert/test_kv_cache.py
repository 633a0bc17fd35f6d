"""Attention over the rows of a window, its products turned around, is the plain attention."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from exporter.graph.masks import drafter_masks, target_masks
from exporter.graph.spec import LayerSpec
from exporter.lower.litert.kv_cache import (
    PACKED_TOKENS,
    FlatCache,
    Window,
    drafter_window,
    kv_shapes,
    target_window,
)
from tests.exporter.graph.eager import causal_mask
from tests.exporter.graph.tensor_cache import TensorCache
from tests.exporter.graph.tensor_cache import kv_shapes as plain_shapes

WINDOW = 20
HEADS, SIZE = 4, 6


def layers(kv_heads: int) -> tuple[LayerSpec, ...]:
    kinds = ("sliding_attention", "full_attention")
    return tuple(
        LayerSpec(
            index=index,
            kind=kind,
            num_heads=HEADS,
            num_kv_heads=kv_heads,
            head_dim=SIZE,
            intermediate_size=1,
            kv_source=index,
            values_from_keys=False,
        )
        for index, kind in enumerate(kinds)
    )


@dataclasses.dataclass
class Pair:
    """The same rows in the plain cache and in the one of the files."""

    plain: TensorCache
    flat: FlatCache


def pair(kv_heads: int, num_rows: int, window: Window) -> Pair:
    generator = torch.manual_seed(1)
    owners = layers(kv_heads)
    plain = {
        name: torch.randn(shape, generator=generator)
        for name, shape in plain_shapes(owners, num_rows).items()
    }
    flat = {
        name: plain[name] if plain[name].shape == shape else plain[name].transpose(2, 3)
        for name, shape in kv_shapes(owners, num_rows).items()
    }
    return Pair(TensorCache(plain), FlatCache(flat, window))


def positions(num_rows: int, num_tokens: int) -> list[int]:
    """Around the ends of the buffer, of the window and of its multiples."""
    last = num_rows - num_tokens
    return [p for p in (0, 5, WINDOW, 63, 64, 83, 84, 120, 140, last - 1, last) if 0 <= p <= last]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_rows", [30, 128, 150, 256])
@pytest.mark.parametrize("num_tokens", [1, 3, PACKED_TOKENS])
def test_a_target_sees_what_the_plain_attention_sees(kv_heads, num_rows, num_tokens):
    spec = SimpleNamespace(kv_layers=layers(kv_heads), sliding_window=WINDOW)
    for position in positions(num_rows, num_tokens):
        input_pos = torch.arange(position, position + num_tokens, dtype=torch.int32)
        both = pair(kv_heads, num_rows, target_window(spec, input_pos))
        masks = target_masks(causal_mask(input_pos, num_rows), input_pos, WINDOW)
        keys, values = torch.randn(2, 1, num_tokens, kv_heads, SIZE)
        queries = torch.randn(1, num_tokens, HEADS, SIZE)
        for layer in spec.kv_layers:
            found, wanted = (
                written(cache, layer.index, keys, values, input_pos).attend(
                    layer.index, queries, masks[layer.kind]
                )
                for cache in (both.flat, both.plain)
            )
            torch.testing.assert_close(found, wanted)


def written(cache, layer, keys, values, input_pos):
    cache.write(layer, keys, values, input_pos)
    return cache


@pytest.mark.parametrize("num_rows", [30, 128, 150, 256])
def test_a_drafter_sees_what_the_plain_attention_sees(num_rows):
    owners = layers(2)
    spec = SimpleNamespace(
        donors={layer.kind: layer.index for layer in owners}, sliding_window=WINDOW
    )
    for position in positions(num_rows, 1)[1:]:
        input_pos = torch.tensor([position], dtype=torch.int32)
        both = pair(2, num_rows, drafter_window(spec, input_pos))
        masks = drafter_masks(causal_mask(input_pos, num_rows), input_pos, WINDOW)
        queries = torch.randn(1, 1, HEADS, SIZE)
        for layer in owners:
            found = both.flat.attend(layer.index, queries, masks[layer.kind])
            wanted = both.plain.attend(layer.index, queries, masks[layer.kind])
            torch.testing.assert_close(found, wanted)


def test_rows_outside_the_window_are_not_even_read():
    num_rows, position = 512, 300
    input_pos = torch.tensor([position], dtype=torch.int32)
    spec = SimpleNamespace(kv_layers=layers(1), sliding_window=WINDOW)
    window = target_window(spec, input_pos)
    cache = pair(1, num_rows, window).flat
    for tensor in (cache.tensors["kv_cache_k_0"], cache.tensors["kv_cache_v_0"]):
        tensor[:, :, : position - window.length] = math.nan
        tensor[:, :, position + window.length :] = math.nan
    mask = target_masks(causal_mask(input_pos, num_rows), input_pos, WINDOW)["sliding_attention"]
    assert cache.attend(0, torch.randn(1, 1, HEADS, SIZE), mask).isfinite().all()


def test_only_sliding_values_lie_by_row():
    by_row, by_column = (1, 2, 256, SIZE), (1, 2, SIZE, 256)
    assert kv_shapes(layers(2), 256) == {
        "kv_cache_k_0": by_row,
        "kv_cache_v_0": by_row,
        "kv_cache_k_1": by_row,
        "kv_cache_v_1": by_column,
    }
