"""The oracle of transformers: what its private parts give is what its public ones give."""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.original import vendor
from exporter.original.model import Original
from tests.exporter import tiny_models

SHAPE = tiny_models.E2B


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.save_pair(SHAPE, 1, tmp_path_factory.mktemp("checkpoint"))


def test_a_growing_cache_holds_what_transformers_own_holds(folders):
    """More tokens than a layer has room for at first, in calls of several widths."""
    model = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    token_ids = torch.randint(SHAPE.vocab_size, (2, 80), generator=torch.manual_seed(1))
    logits, rows = [], []
    for cache in (vendor.growing_cache(), DynamicCache()):
        with torch.inference_mode():
            parts = token_ids.split((9, 1, 40, 1, 29), dim=1)
            calls = [model(part, cache=cache, use_cache=True).logits for part in parts]
        logits.append(torch.cat(calls, dim=1))
        rows.append([(layer.keys, layer.values) for layer in cache.layers])
    assert torch.equal(*logits)
    assert len(rows[0]) == len(rows[1])
    for ours, theirs in zip(*rows, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_a_skeleton_has_the_shapes_that_transformers_loads(folders):
    for folder in folders:
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        skeleton = vendor.skeleton(folder, text_only=False)
        assert type(skeleton) is type(loaded)
        shapes = [
            {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
            for model in (skeleton, loaded)
        ]
        assert shapes[0] == shapes[1]


def test_running_the_original_raises_no_warning(folders):
    target = read_checkpoint(folders[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = Original(target, read_drafter(folders[1], target)).begin([[1, 2, 3], [4]])
        texts.draft(torch.tensor([5, 6]), 2)
        texts.advance(torch.tensor([5, 6]))
