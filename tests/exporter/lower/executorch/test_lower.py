"""One program says what the graph says, over one KV buffer."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.config import GraphShapes
from exporter.lower.executorch.lower import lower
from exporter.lower.executorch.weights import QuantizedLinear, quantized
from exporter.quantize import load_recipe, plan
from tests.exporter.graph.eager import EagerModel
from tests.exporter.lower.executorch.programs import Program
from tests.exporter.tiny_models import Shape, save_pair

# Lowering takes a minute: time goes by the number of operators, in ExecuTorch's own passes. The
# default tests look at the tiny model's program, in tests/end_to_end.
pytestmark = pytest.mark.slow

CACHE_LENGTH = 24
PREFILL_LENGTH = 9
MODEL = Shape(
    layers="sfsf", hidden_size=32, intermediate_size=64, kv_heads=1, shared=2, doubled=True,
    per_layer=8, centroids=16, top_k=3, drafter_layers="sf",
)  # fmt: skip
# Of the largest logit, against the graph with the stored weights: what is left is the activations'
# rounding to int8.
ERRORS = {"float32": 1e-4, "int8": 0.05, "int4": 0.05, "int4-groups": 0.05}


@dataclass(frozen=True)
class Lowered:
    """One exported pair and the same pair run eagerly."""

    path: Path
    recipe: str
    eager: EagerModel


@pytest.fixture(scope="module", params=["float32", "int8", "int4", "int4-groups"])
def lowered(request, tmp_path_factory) -> Lowered:
    folder = tmp_path_factory.mktemp("lowered")
    target_folder, drafter_folder = save_pair(MODEL, 1, folder)
    target = read_checkpoint(target_folder)
    shapes = GraphShapes(
        prefill_lengths=(PREFILL_LENGTH,), verify_widths=(2, 4), cache_length=CACHE_LENGTH
    )
    path = folder / "model.pte"
    drafter, recipe = read_drafter(drafter_folder, target), load_recipe(request.param)
    lower(target, drafter, shapes, recipe, path)
    eager = EagerModel(target_folder, drafter_folder, CACHE_LENGTH)
    for module in (eager.embedder, eager.per_layer_embedder, eager.target):
        round_as_stored(module, target, plan(target, recipe))
    round_as_stored(eager.drafter, drafter, plan(drafter, recipe, "drafter."))
    return Lowered(path, request.param, eager)


def round_as_stored(module, checkpoint, types) -> None:
    for name, parameter in module.named_parameters():
        if types[name].bits == 32:
            continue
        stored = quantized(checkpoint, name, types[name])
        values = QuantizedLinear(stored).values
        scales = stored.scales.reshape(len(values), -1, 1)
        groups = values.reshape(len(values), scales.shape[1], -1) * scales
        parameter.data = groups.reshape(parameter.shape)


@pytest.fixture
def token_ids() -> torch.Tensor:
    return torch.randint(0, MODEL.vocab_size, (CACHE_LENGTH,), generator=torch.manual_seed(3))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def test_prefill_decode_verify_and_draft_equal_the_eager_graph(lowered, token_ids):
    """Also far past the sliding window, which is 5 rows."""
    eager, program, allowed = lowered.eager, Program(lowered.path), ERRORS[lowered.recipe]
    eager.clear()
    program.fill(token_ids[:PREFILL_LENGTH], 0)
    eager.prefill(token_ids[:PREFILL_LENGTH], 0)
    program.fill(token_ids[9:11], PREFILL_LENGTH)
    eager.prefill(token_ids[9:11], PREFILL_LENGTH)
    position = 11
    for width in (1, 4, 2, 1, 3):
        chunk = token_ids[position : position + width]
        logits, hidden = program.verify(chunk, position)
        expected, expected_hidden = eager.verify(chunk, position)
        assert error(logits, expected) < allowed
        assert error(hidden, expected_hidden) < allowed
        position += width
        drafted, projected = program.draft(token_ids[position], hidden[-1], position)
        wanted, wanted_projected = eager.draft(token_ids[position], hidden[-1], position)
        assert error(projected, wanted_projected) < allowed
        if lowered.recipe == "float32":  # integers may choose other clusters of tokens
            assert error(drafted, wanted) < allowed


@torch.no_grad()
def test_the_first_token_of_all_and_the_last_row_of_the_cache(lowered, token_ids):
    eager, program = lowered.eager, Program(lowered.path)
    eager.clear()
    for position in (0, *range(1, CACHE_LENGTH)):
        logits, _ = program.verify(token_ids[position : position + 1], position)
        expected, _ = eager.verify(token_ids[position : position + 1], position)
        assert error(logits, expected) < ERRORS[lowered.recipe]


def test_rejected_drafts_leave_no_trace(lowered, token_ids):
    """Rows past the committed ones are stale: other tokens there change nothing."""
    program = Program(lowered.path)
    program.fill(token_ids[:8], 0)
    clean, hidden = program.verify(token_ids[8:9], 8)
    draft, _ = program.draft(token_ids[9], hidden[0], 9)
    program.verify(token_ids[12:16], 9)
    again, _ = program.verify(token_ids[8:9], 8)
    assert torch.equal(clean, again)
    assert torch.equal(draft, program.draft(token_ids[9], hidden[0], 9)[0])


def test_what_the_target_writes_changes_what_draft_returns(lowered, token_ids):
    program = Program(lowered.path)
    hidden = torch.linspace(-1, 1, MODEL.hidden_size)
    program.fill(token_ids[:8], 0)
    before, _ = program.draft(token_ids[8], hidden, 8)
    program.verify(token_ids[16:18], 6)
    after, _ = program.draft(token_ids[8], hidden, 8)
    assert not torch.equal(before, after)


def test_two_programs_do_not_see_each_others_rows(lowered, token_ids):
    program, other = Program(lowered.path), Program(lowered.path)
    hidden = torch.linspace(-1, 1, MODEL.hidden_size)
    program.fill(token_ids[:8], 0)
    before, _ = program.draft(token_ids[8], hidden, 8)
    other.fill(token_ids[8:16], 0)
    assert torch.equal(before, program.draft(token_ids[8], hidden, 8)[0])
    assert not torch.equal(before, other.draft(token_ids[8], hidden, 8)[0])


def test_the_program_says_what_it_holds(lowered):
    program = Program(lowered.path)
    constants = {
        "format_version": 2,
        "context_length": CACHE_LENGTH,
        "vocab_size": MODEL.vocab_size,
        "hidden_size": MODEL.hidden_size,
        "max_prefill_length": PREFILL_LENGTH,
        "max_verify_length": 4,
        "has_drafter": 1,
    }
    assert program.method_names == {"fill", "finish", "draft", "sliding"} | set(constants)
    assert {name: program.constant(name) for name in constants} == constants
