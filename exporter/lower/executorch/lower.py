"""Target and drafter to one .pte file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.checkpoint.reader import DrafterCheckpoint, TargetCheckpoint
from exporter.config import GraphShapes
from exporter.errors import ExportError
from exporter.graph.drafter import Drafter
from exporter.graph.sliding import sliding_layers
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.lower.executorch.kv_cache import KVBuffers
from exporter.lower.executorch.modules import DraftStep, Fill, Finish, spell_means
from exporter.lower.executorch.program import Method, write_program
from exporter.lower.executorch.vendor import PACKAGES
from exporter.lower.executorch.weights import Loader
from exporter.lower.lowering import Job, Lowered, Lowering, OnStep, refuse_experts
from exporter.pins import check_pins
from exporter.quantize import DRAFTER_PREFIX, Recipe, WeightType, plan
from runtime_py.bundle.sliding import KEY as SLIDING
from runtime_py.bundle.sliding import numbers_of
from runtime_py.formats.weight_names import KEY, write_names

FORMAT_VERSION = 2
# Bits of weights that XNNPACK's serialized graphs cannot multiply with -> the recipe to use.
INSTEAD = {16: "float32 or int8", 2: "int4"}
# XNNPACK has no gather, and its linears take constants. embedding_4bit gathers, but makes float32:
# 190 MB in a layer of 26B-A4B, instead of 24 MB of int4. ExecuTorch 1.5.1 neither delegates nor
# decomposes a linear in a branch of torch.cond.
_NO_EXPERTS = "XNNPACK multiplies by constants only, and experts are chosen while it runs"
_NO_INT8_ROWS = "our attention kernel in its shim reads float32 rows"


def check(types: Mapping[str, WeightType]) -> None:
    """Refuse what this lowering cannot do, before any work.

    Args:
        types: of target and drafter together, by tensor name.

    Raises:
        ExportError: if the installed tools are not the pinned ones, or a type cannot be
            stored, or the model has experts.
    """
    refuse_experts(types, _NO_EXPERTS)
    check_pins("lowering to ExecuTorch", PACKAGES)
    for name, kind in types.items():
        if kind.bits in INSTEAD:
            raise ExportError(
                f"{name}: {kind.bits} bits, ExecuTorch's XNNPACK "
                "multiplies float32 with float32, int8 or int4; use --quantize "
                f"{INSTEAD[kind.bits]}, or --runtime litert or onnx"
            )


def lower(
    target: TargetCheckpoint,
    drafter: DrafterCheckpoint | None,
    shapes: GraphShapes,
    recipe: Recipe,
    out: Path,
    on_step: OnStep = lambda _done, _total: None,
) -> None:
    """Write the program `out` with the methods fill, finish and, with a drafter, draft.

    Args:
        target: the checkpoint of the target.
        drafter: read against `target`, or None.
        shapes: fill takes up to the longest prefill, finish up to the widest verify.
        recipe: how every tensor is stored.
        out: the .pte file to write.
        on_step: called with the number of steps done, and of all.

    Raises:
        ExportError: if the installed tools are not the pinned ones, or the recipe does not fit.
    """
    check(plan(target, recipe))
    verify_length = max((1, *shapes.verify_widths))
    prefill_length = max((verify_length, *shapes.prefill_lengths))
    kv = KVBuffers(target.spec.kv_layers, shapes.cache_length)
    loader = Loader(target, plan(target, recipe))
    embedder, table, decoder = _load_target(target, loader)
    names = loader.names
    methods = {
        "fill": _fill_method(Fill(kv, embedder, table, decoder), prefill_length),
        "finish": _finish_method(Finish(kv, decoder), verify_length),
    }
    if drafter is not None:
        module = Drafter(drafter.spec)
        loader = Loader(drafter, plan(drafter, recipe, DRAFTER_PREFIX), DRAFTER_PREFIX)
        loader.load(module)
        names = {**names, **loader.names}
        spell_means(module)
        methods["draft"] = _draft_method(DraftStep(kv, embedder, decoder, module))
    sliding = sliding_layers(target.spec)
    constants: dict[str, int | Tensor] = {
        "format_version": FORMAT_VERSION,
        "context_length": shapes.cache_length,
        "vocab_size": target.spec.vocab_size,
        "hidden_size": target.spec.hidden_size,
        "max_prefill_length": prefill_length,
        "max_verify_length": verify_length,
        "has_drafter": int(drafter is not None),
    }
    if sliding is not None:
        constants[SLIDING] = torch.tensor(numbers_of(sliding))
    write_program(methods, constants, {KEY: write_names(names)}, out, on_step)


def _load_target(
    target: TargetCheckpoint, loader: Loader
) -> tuple[Embedder, PerLayerEmbedder | None, Target]:
    spec = target.spec
    embedder, decoder = Embedder(spec), Target(spec)
    table = PerLayerEmbedder(spec) if spec.per_layer_size else None
    for module in (embedder, table, decoder):
        if module is not None:
            loader.load(module)
            spell_means(module)
    return embedder, table, decoder


def _fill_method(module: Fill, max_tokens: int) -> Method:
    sample = (torch.zeros(1, max_tokens, dtype=torch.int64), torch.tensor([1]))
    return Method(module, *_dynamic(sample, max_tokens))


def _finish_method(module: Finish, max_tokens: int) -> Method:
    spec = module.target.spec
    sample = [torch.zeros(1, max_tokens, spec.hidden_size)]
    if spec.per_layer_size:
        num_layers = len(spec.layers) - spec.kv_layers[-1].index
        sample.append(torch.zeros(1, max_tokens, num_layers, spec.per_layer_size))
    inputs, dynamic_shapes = _dynamic((*sample, torch.tensor([1])), max_tokens)
    # One level deeper for `*inputs`.
    return Method(module, inputs, None if dynamic_shapes is None else (dynamic_shapes,))


def _dynamic(
    sample: tuple[Tensor, ...], max_tokens: int
) -> tuple[tuple[Tensor, ...], tuple[Any, ...] | None]:
    """The sample and its dynamic shapes: dimension 1 of everything but the position."""
    if max_tokens == 1:
        return sample, None
    num_tokens = torch.export.Dim("T", min=1, max=max_tokens)
    return sample, (*({1: num_tokens} for _ in sample[:-1]), None)


def _draft_method(module: DraftStep) -> Method:
    width = module.drafter.spec.target_hidden_size
    sample = (
        torch.zeros(1, 1, dtype=torch.int64),
        torch.zeros(1, 1, width),
        torch.tensor([1]),
    )
    return Method(module, sample, None)


def _lower(job: Job, folder: Path, on_step: OnStep) -> Lowered:
    out = folder / "model.pte"
    lower(job.target, job.drafter, job.shapes, job.recipe, out, on_step)
    return Lowered([out], "1 program")


LOWERING = Lowering(name="executorch", check=check, lower=_lower, no_int8_rows=_NO_INT8_ROWS)
