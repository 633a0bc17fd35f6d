"""Target and drafter to one .pte file."""

from pathlib import Path

import torch
from torch import nn

from exporter.checkpoint import DrafterCheckpoint, TargetCheckpoint
from exporter.config import GraphShapes
from exporter.graph.drafter import Drafter
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.lower.executorch.kv_cache import KVBuffers
from exporter.lower.executorch.modules import DraftStep, Fill, TargetStep, spell_means
from exporter.lower.executorch.program import Method, check_versions, write_program
from exporter.lower.executorch.weights import Loader
from exporter.quantize import Recipe, plan

FORMAT_VERSION = 1
DRAFTER_PREFIX = "drafter."  # how a recipe names the drafter's tensors


def lower(
    target: TargetCheckpoint,
    drafter: DrafterCheckpoint | None,
    shapes: GraphShapes,
    recipe: Recipe,
    out: Path,
) -> None:
    """Write the program `out` with the methods fill, forward and, with a drafter, draft.

    Args:
        target: the checkpoint of the target.
        drafter: read against `target`, or None.
        shapes: fill takes up to the longest prefill, forward up to the widest verify.
        recipe: how every tensor is stored.
        out: the .pte file to write.

    Raises:
        ExportError: if the installed tools are not the pinned ones, or the recipe does not fit.
    """
    check_versions()
    kv = KVBuffers(target.spec.kv_layers, shapes.cache_length)
    embedder, table, decoder = _load_target(target, recipe)
    step, fill = TargetStep(kv, embedder, table, decoder), Fill(kv, embedder, table, decoder)
    methods = {
        "forward": _target_method(step, max((1, *shapes.verify_widths))),
        "fill": _target_method(fill, max(shapes.prefill_lengths)),
    }
    if drafter is not None:
        module = Drafter(drafter.spec)
        Loader(drafter, plan(drafter, recipe, DRAFTER_PREFIX)).load(module)
        spell_means(module)
        methods["draft"] = _draft_method(DraftStep(kv, embedder, decoder, module))
    constants = {
        "format_version": FORMAT_VERSION,
        "context_length": shapes.cache_length,
        "vocab_size": target.spec.vocab_size,
        "hidden_size": target.spec.hidden_size,
        "max_prefill_length": max(shapes.prefill_lengths),
        "max_verify_length": max((1, *shapes.verify_widths)),
        "has_drafter": int(drafter is not None),
    }
    write_program(methods, constants, out)


def _load_target(
    target: TargetCheckpoint, recipe: Recipe
) -> tuple[Embedder, PerLayerEmbedder | None, Target]:
    spec = target.spec
    embedder, decoder = Embedder(spec), Target(spec)
    table = PerLayerEmbedder(spec) if spec.per_layer_size else None
    loader = Loader(target, plan(target, recipe))
    for module in (embedder, table, decoder):
        if module is not None:
            loader.load(module)
            spell_means(module)
    return embedder, table, decoder


def _target_method(module: nn.Module, max_tokens: int) -> Method:
    # Traced with more than one token: a width of 1 would be taken for a constant.
    sample = (torch.zeros(1, max(2, max_tokens), dtype=torch.int64), torch.tensor([1]))
    if max_tokens == 1:
        return Method(module, (sample[0][:, :1], sample[1]), None)
    return Method(module, sample, ({1: torch.export.Dim("T", min=1, max=max_tokens)}, None))


def _draft_method(module: DraftStep) -> Method:
    width = module.drafter.spec.target_hidden_size
    sample = (
        torch.zeros(1, 1, dtype=torch.int64),
        torch.zeros(1, 1, width),
        torch.tensor([1]),
    )
    return Method(module, sample, None)
