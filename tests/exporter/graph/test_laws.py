"""Laws of the graph that need no original."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exporter.graph.primitives import Primitives
from exporter.graph.target import Target
from exporter.graph.weights import expected_tensors, is_virtual, load_weights
from runtime_py.decoding.sampling import SamplingParams, choose, surviving_tokens
from tests.exporter import tiny_models
from tests.exporter.graph.eager import EagerModel, causal_mask
from tests.exporter.graph.tensor_cache import TensorCache

CACHE = 20
COMMITTED = 12
KINDS = {
    "e2b": dataclasses.replace(tiny_models.E2B, layers="sfsf", shared=2, drafter_layers="sf"),
    "26b": dataclasses.replace(tiny_models.A4B_26B, layers="sf", drafter_layers="sf"),
    "12b": dataclasses.replace(tiny_models.UNIFIED_12B, layers="sf", drafter_layers="sf"),
}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def folders(request: Any, tmp_path_factory: Any) -> tuple[Path, Path]:
    return tiny_models.save_pair(KINDS[request.param], 3, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def model(folders: tuple[Path, Path]) -> EagerModel:
    graph = EagerModel(*folders, cache_length=CACHE)
    graph.prefill(torch.arange(COMMITTED) % 7, 0)
    return graph


def spoil(model: EagerModel, first: int) -> None:
    """Fill the rows from `first` on with large numbers."""
    for name, tensor in model.kv.tensors.items():
        dim = 2 if "_k_" in name else 3
        tensor.narrow(dim, first, CACHE - first).fill_(1e4)


def test_stale_rows_change_no_verify(model):
    tokens = torch.tensor([3, 1, 4])
    kept = dict(model.kv.tensors)
    clean, _ = model.verify(tokens, COMMITTED)
    model.kv = TensorCache({name: tensor.clone() for name, tensor in kept.items()})
    spoil(model, COMMITTED)
    spoiled, _ = model.verify(tokens, COMMITTED)
    assert torch.equal(clean, spoiled)


def test_suppressed_tokens_are_never_chosen_and_change_no_other_logit(model, folders, tmp_path):
    """By greedy or by sampling, which adds noise of up to 41 between the luckiest and the rest."""
    tokens = torch.tensor([3, 1, 4])
    wanted, _ = model.verify(tokens, COMMITTED)
    best = sorted({int(row.argmax()) for row in wanted})
    folder = Path(shutil.copytree(folders[0], tmp_path / "target"))
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": best}))
    suppressing = EagerModel(folder, folders[1], cache_length=CACHE)
    suppressing.prefill(torch.arange(COMMITTED) % 7, 0)
    found, _ = suppressing.verify(tokens, COMMITTED)
    others = [token for token in range(model.spec.vocab_size) if token not in best]
    assert torch.equal(found[:, others], wanted[:, others])
    assert found.half().isfinite().all()
    for row in found.numpy():
        assert int(row.argmax()) in others
        for seed in range(20):
            sampling = SamplingParams(temperature=300.0, top_k=0, top_p=0.999, seed=seed)
            assert choose(row, sampling, position=seed) in others
            assert set(surviving_tokens(row, sampling)[0].tolist()) <= set(others)


def test_stale_rows_change_no_draft(model):
    """Also the row of the last emitted token, which may hold a rejected draft."""
    hidden = torch.linspace(-1, 1, model.spec.hidden_size)
    clean = model.draft(torch.tensor(5), hidden, COMMITTED)
    spoil(model, COMMITTED)
    spoiled = model.draft(torch.tensor(5), hidden, COMMITTED)
    assert torch.equal(clean[0], spoiled[0])
    assert torch.equal(clean[1], spoiled[1])


def test_committed_rows_change_a_draft(model):
    hidden = torch.linspace(-1, 1, model.spec.hidden_size)
    clean, _ = model.draft(torch.tensor(5), hidden, COMMITTED)
    spoil(model, COMMITTED - 1)
    spoiled, _ = model.draft(torch.tensor(5), hidden, COMMITTED)
    assert not torch.equal(clean, spoiled)


def test_a_draft_writes_nothing(model):
    kept = {name: tensor.clone() for name, tensor in model.kv.tensors.items()}
    model.draft(torch.tensor(5), torch.ones(model.spec.hidden_size), COMMITTED)
    assert all(torch.equal(kept[name], model.kv.tensors[name]) for name in kept)


def run_target(model: EagerModel, mask: Tensor) -> Tensor:
    embeddings, per_layer, input_pos, _ = model._inputs(torch.tensor([3, 1, 4]), COMMITTED)
    cache = TensorCache(model.kv.tensors)
    logits, _ = model.target(embeddings, per_layer, input_pos, mask, cache)
    return logits


@pytest.mark.parametrize("masked", [-math.inf, torch.finfo(torch.float32).min, -1e9, -1e6])
def test_every_spelling_of_the_mask_is_the_same(model, masked):
    input_pos = torch.arange(COMMITTED, COMMITTED + 3)
    usual = run_target(model, causal_mask(input_pos, CACHE))
    assert torch.equal(run_target(model, causal_mask(input_pos, CACHE, masked)), usual)


def test_a_token_that_may_see_nothing_stays_finite(model):
    """A padded token writes its KV row too, and 0 * nan is nan."""
    mask = torch.full((1, 1, 3, CACHE), -math.inf)
    assert run_target(model, mask).isfinite().all()


def test_the_caller_can_hide_rows(model):
    mask = causal_mask(torch.arange(COMMITTED, COMMITTED + 3), CACHE)
    usual = run_target(model, mask)
    mask[..., COMMITTED - 1] = -math.inf
    assert not torch.equal(run_target(model, mask), usual)


class Call(nn.Module):
    """A module call as a lowering would trace it."""

    def __init__(self, model: EagerModel, name: str) -> None:
        super().__init__()
        self.module = model.drafter if name == "draft" else model.target
        self.name = name

    def forward(self, inputs: tuple[Tensor, ...], tensors: dict[str, Tensor]) -> Any:
        cache = TensorCache(tensors)
        if self.name == "prefill":
            self.module.fill(*inputs, cache)
            return cache.tensors
        return *self.module(*inputs, cache), cache.tensors


def sample(model: EagerModel, name: str) -> tuple[Any, dict[str, Tensor]]:
    tensors = dict(model.kv.tensors)
    if name == "draft":
        input_pos = torch.tensor([COMMITTED], dtype=torch.int32)
        activations = torch.linspace(-1, 1, 2 * model.spec.hidden_size).reshape(1, 1, -1)
        return (activations, input_pos, causal_mask(input_pos, CACHE)), tensors
    return model._inputs(torch.arange({"decode": 1}.get(name, 4)), COMMITTED), tensors


@pytest.mark.parametrize("name", ["prefill", "decode", "verify", "draft"])
def test_every_call_exports(model, name):
    call, (inputs, tensors) = Call(model, name), sample(model, name)
    wanted = call(inputs, tensors)
    program = torch.export.export(call, (inputs, tensors), strict=False)
    torch.testing.assert_close(program.module()(inputs, tensors), wanted)


def test_prefill_runs_no_layer_that_only_reads(folders):
    """The KV of a prompt is complete at the last layer that owns rows."""
    model = EagerModel(*folders, cache_length=CACHE)
    ran: list[int] = []
    for index, layer in enumerate(model.target.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.prefill(torch.arange(4), 0)
    assert ran == list(range(model.spec.kv_layers[-1].index))


def test_primitives_change_the_spelling_and_not_the_result(folders, model):
    def mean_square(x: Tensor) -> Tensor:
        return nn.functional.linear(x * x, torch.full((1, x.shape[-1]), 1.0 / x.shape[-1]))

    def best_indices(scores: Tensor, k: int) -> Tensor:
        return torch.argsort(scores, descending=True)[..., :k]

    spelled = Primitives(mean_square=mean_square, top_k_indices=best_indices)
    other = EagerModel(*folders, cache_length=CACHE, primitives=spelled)
    other.prefill(torch.arange(COMMITTED) % 7, 0)
    for name in ("verify", "draft"):
        call, (inputs, tensors) = Call(other, name), sample(other, name)
        program = torch.export.export(call, (inputs, tensors), strict=False)
        used = {str(node.target) for node in program.graph.nodes}
        assert "aten.mean.dim" not in used
        assert "aten.topk.default" not in used
        found, usual = call(inputs, tensors)[0], Call(model, name)(*sample(model, name))[0]
        torch.testing.assert_close(found, usual, rtol=1e-4, atol=1e-4)


def test_virtual_weights_take_no_room_and_stay_apart(model):
    target = Target(model.spec)
    load_weights(target, model.checkpoint, virtual=True)
    parameters = dict(target.named_parameters())
    matrices = [p for p in parameters.values() if p.dim() == 2]
    assert all(is_virtual(p) for p in matrices)
    assert len({p.untyped_storage().data_ptr() for p in matrices}) == len(matrices)
    for name, p in parameters.items():
        assert tuple(p.shape) == model.checkpoint.shape(name)
        if p.dim() < 2:
            assert torch.equal(p, model.checkpoint.tensor(name))


def test_nothing_is_left_on_the_meta_device(model):
    for module in (model.embedder, model.target, model.drafter):
        assert not expected_tensors([module])
