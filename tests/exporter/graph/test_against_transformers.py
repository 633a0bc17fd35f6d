"""The graph equals transformers' own modules, for every kind of Gemma 4."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.exporter import tiny_models
from tests.exporter.graph.eager import EagerModel
from tests.exporter.graph.tensor_cache import key_name, value_name
from tests.exporter.tiny_models import FULL, SLIDING, Shape

# Largest difference over the largest absolute value of the original. Some random models are
# ill-conditioned: transformers in float32 is itself 3e-5 from transformers in float64 there.
TOLERANCE = 1e-5
RANDOM_TOLERANCE = 1e-4
PROMPT = 17  # several times every window
LENGTH = 24
CACHE = 32

SHAPES = {
    "e2b": tiny_models.E2B,
    "e4b": tiny_models.E4B,
    "unified-12b": tiny_models.UNIFIED_12B,
    "dense-31b": tiny_models.DENSE_31B,
    "a4b-26b": tiny_models.A4B_26B,
    "untied": tiny_models.UNTIED,
} | {f"random-{seed}": tiny_models.random_shape(seed) for seed in range(10)}


class Original:
    """What transformers says about one random sequence."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.target = tiny_models.target_model(shape, seed)
        self.drafter = tiny_models.drafter_model(shape, seed + 1)
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, shape.vocab_size, (LENGTH,), generator=generator)
        cache = DynamicCache()  # without a config, so that no layer drops old rows
        with torch.no_grad():
            out = self.target(
                self.tokens[None], cache=cache, use_cache=True, output_hidden_states=True
            )
        self.logits, self.hidden = out.logits[0], out.hidden_states[-1][0]
        self.rows = {
            layer: (cache.layers[layer].keys, cache.layers[layer].values)
            for layer in range(len(shape.layers) - shape.shared)
        }

    @torch.no_grad()
    def draft(self, token: Tensor, hidden: Tensor, position: int, donors: Any) -> Any:
        """One step over the committed rows 0 .. position - 1."""
        embedding = self.target.model.embed_tokens(token.reshape(1, 1))
        shared = {}
        for kind in (SLIDING, FULL):
            keys, values = self.rows[donors[kind]]
            shared[kind] = (keys[:, :, :position], values[:, :, :position])
        out = self.drafter(
            inputs_embeds=torch.cat((embedding, hidden.reshape(1, 1, -1)), dim=-1),
            position_ids=torch.tensor([[position]]),
            shared_kv_states=shared,
        )
        return out.logits[0, 0], out.last_hidden_state[0, 0]


class Pair:
    def __init__(self, shape: Shape, seed: int, folder: Path, tolerance: float) -> None:
        self.tolerance = tolerance
        self.original = Original(shape, seed)
        self.folders = (
            tiny_models.save(self.original.target, folder / "target"),
            tiny_models.save(self.original.drafter, folder / "drafter"),
        )

    @functools.cached_property
    def loaded(self) -> EagerModel:
        return EagerModel(*self.folders, cache_length=CACHE)

    def graph(self) -> EagerModel:
        """The graph with an empty cache."""
        self.loaded.clear()
        return self.loaded

    def assert_equal(self, found: Tensor, original: Tensor) -> None:
        assert found.shape == original.shape
        scale = original.abs().max().item()
        assert (found - original).abs().max().item() <= self.tolerance * scale


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name = request.param
    tolerance = RANDOM_TOLERANCE if name.startswith("random") else TOLERANCE
    return Pair(SHAPES[name], sum(name.encode()), tmp_path_factory.mktemp(name), tolerance)


def test_the_original_is_discriminating(pair):
    logits = pair.original.logits
    assert logits.std() > 0.3
    assert len(set(logits.argmax(-1).tolist())) > LENGTH // 4


def test_prefill_in_one_call(pair):
    logits, activations = pair.graph().verify(pair.original.tokens, 0)
    pair.assert_equal(logits, pair.original.logits)
    pair.assert_equal(activations, pair.original.hidden)


def test_decode_after_fill(pair):
    graph, tokens = pair.graph(), pair.original.tokens
    graph.prefill(tokens[:PROMPT], 0)
    for position in range(PROMPT, LENGTH):
        logits, activations = graph.verify(tokens[position : position + 1], position)
        pair.assert_equal(logits[0], pair.original.logits[position])
        pair.assert_equal(activations[0], pair.original.hidden[position])


@pytest.mark.parametrize("width", [2, 7])
def test_verify_after_fill(pair, width):
    graph, tokens = pair.graph(), pair.original.tokens
    graph.prefill(tokens[:PROMPT], 0)
    logits, activations = graph.verify(tokens[PROMPT : PROMPT + width], PROMPT)
    pair.assert_equal(logits, pair.original.logits[PROMPT : PROMPT + width])
    pair.assert_equal(activations, pair.original.hidden[PROMPT : PROMPT + width])


def test_chunked_fill_writes_the_originals_rows(pair):
    graph, tokens = pair.graph(), pair.original.tokens
    for start, stop in ((0, 1), (1, 6), (6, 14), (14, PROMPT)):
        graph.prefill(tokens[start:stop], start)
    for layer in graph.spec.kv_layers:
        keys, values = pair.original.rows[layer.index]
        pair.assert_equal(
            graph.kv.tensors[key_name(layer.index)][:, :, :PROMPT], keys[:, :, :PROMPT]
        )
        found = graph.kv.tensors[value_name(layer.index)][..., :PROMPT].transpose(2, 3)
        pair.assert_equal(found, values[:, :, :PROMPT])


@pytest.mark.parametrize("committed", [1, 4, PROMPT, LENGTH - 1])
def test_draft_steps(pair, committed):
    graph, original = pair.graph(), pair.original
    graph.prefill(original.tokens, 0)
    donors = graph.spec.donors
    token, hidden = original.tokens[committed], original.hidden[committed - 1]
    found_hidden = hidden
    for _ in range(3):
        logits, found_hidden = graph.draft(token, found_hidden, committed)
        wanted, hidden = original.draft(token, hidden, committed, donors)
        pair.assert_equal(logits, wanted)
        pair.assert_equal(found_hidden, hidden)
        token = wanted.argmax()


def test_speculative_rounds_with_rejections(pair):
    """Every call of three rounds, in which drafts are right, wrong, and half right."""
    graph, original, tokens = pair.graph(), pair.original, pair.original.tokens
    graph.prefill(tokens[:PROMPT], 0)
    position = PROMPT
    for num_right in (0, 2, 1):
        wanted, _ = original.draft(
            tokens[position], original.hidden[position - 1], position, graph.spec.donors
        )
        found, _ = graph.draft(tokens[position], original.hidden[position - 1], position)
        pair.assert_equal(found, wanted)
        drafts = tokens[position : position + 4].clone()
        drafts[1 + num_right :] = (drafts[1 + num_right :] + 1) % graph.spec.vocab_size
        logits, _ = graph.verify(drafts, position)
        pair.assert_equal(
            logits[: 1 + num_right], original.logits[position : position + 1 + num_right]
        )
        position += 1 + num_right
