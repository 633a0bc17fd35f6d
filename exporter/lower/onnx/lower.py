"""Target and drafter to .onnx files over one file of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from exporter.checkpoint.reader import DrafterCheckpoint, TargetCheckpoint
from exporter.config import GraphShapes
from exporter.graph.drafter import Drafter
from exporter.graph.sliding import sliding_layers
from exporter.graph.spec import TargetSpec
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.lower.lowering import Job, Lowered, Lowering, OnStep
from exporter.lower.onnx.data_file import data_file
from exporter.lower.onnx.kv_cache import ROW_MULTIPLE, past_names
from exporter.lower.onnx.modules import DraftStep, Fill, Finish, Graph
from exporter.lower.onnx.program import Inputs, write_graph
from exporter.lower.onnx.vendor import PACKAGES
from exporter.lower.onnx.weights import Loader
from exporter.pins import check_pins
from exporter.quantize import DRAFTER_PREFIX, Recipe, WeightType, plan
from runtime_py.bundle.sliding import KEY, write_sliding

FORMAT_VERSION = 1
DATA_NAME = "model.data"
_SAMPLE_TOKENS = 3
_SAMPLE_ROWS = 2 * ROW_MULTIPLE


def check(_types: Mapping[str, WeightType]) -> None:
    """Refuse other tools than the pinned ones; any type can be stored.

    Raises:
        ExportError: naming the tool and how to install it.
    """
    check_pins("lowering to ONNX", PACKAGES)


def lower(
    target: TargetCheckpoint,
    drafter: DrafterCheckpoint | None,
    shapes: GraphShapes,
    recipe: Recipe,
    folder: Path,
    on_step: OnStep = lambda _done, _total: None,
) -> list[Path]:
    """Write model.fill.onnx, model.finish.onnx, with a drafter model.draft.onnx, and model.data.

    Args:
        target: the checkpoint of the target.
        drafter: read against `target`, or None.
        shapes: limits that the files state; the graphs take any number of tokens.
        recipe: how every tensor is stored.
        folder: for the files.
        on_step: called with the number of graphs done, and of all.

    Returns:
        The files; the first is the graph that a runtime loads first.

    Raises:
        ExportError: if the installed tools are not the pinned ones, or the recipe does not fit.
    """
    check({})
    verify_length = max((1, *shapes.verify_widths))
    sliding = sliding_layers(target.spec)
    constants: dict[str, int | str] = {
        "format_version": FORMAT_VERSION,
        "context_length": shapes.cache_length,
        "vocab_size": target.spec.vocab_size,
        "hidden_size": target.spec.hidden_size,
        "max_prefill_length": max((verify_length, *shapes.prefill_lengths)),
        "max_verify_length": verify_length,
        "has_drafter": int(drafter is not None),
        **({} if sliding is None else {KEY: write_sliding(sliding)}),
    }
    graphs = _graphs(target, drafter, recipe)
    files: list[Path] = []
    with data_file(folder / DATA_NAME) as data:
        for name, (graph, own) in graphs.items():
            on_step(len(files), len(graphs))
            files.append(folder / f"model.{name}.onnx")
            inputs = _inputs(target.spec, graph, own)
            write_graph(graph, inputs, constants, data, files[-1])
    on_step(len(graphs), len(graphs))
    return [*files, folder / DATA_NAME]


def _graphs(
    target: TargetCheckpoint, drafter: DrafterCheckpoint | None, recipe: Recipe
) -> dict[str, tuple[Graph, dict[str, Any]]]:
    """Every graph with the sample of its own inputs."""
    spec = target.spec
    embedder, decoder = Embedder(spec), Target(spec)
    table = PerLayerEmbedder(spec) if spec.per_layer_size else None
    loader = Loader(target, plan(target, recipe))
    for module in (embedder, table, decoder):
        if module is not None:
            loader.load(module)
    hidden = torch.zeros(1, _SAMPLE_TOKENS, spec.hidden_size)
    own: dict[str, Any] = {"hidden": hidden}
    if spec.per_layer_size:
        num_layers = len(spec.layers) - spec.kv_layers[-1].index
        own["per_layer"] = torch.zeros(1, _SAMPLE_TOKENS, num_layers, spec.per_layer_size)
    token_ids = torch.zeros(1, _SAMPLE_TOKENS, dtype=torch.int64)
    graphs: dict[str, tuple[Graph, dict[str, Any]]] = {
        "fill": (Fill(embedder, table, decoder), {"token_ids": token_ids}),
        "finish": (Finish(decoder), own),
    }
    if drafter is not None:
        draft_module = Drafter(drafter.spec)
        gathered = {drafter.spec.head_name} if drafter.spec.centroids else set()
        Loader(drafter, plan(drafter, recipe, DRAFTER_PREFIX)).load(
            draft_module, frozenset(gathered)
        )
        first = {"token_id": token_ids[:, :1], "hidden": hidden[:, :1]}
        graphs["draft"] = DraftStep(embedder, spec, draft_module), first
    for graph, _ in graphs.values():
        graph.kv_ranges = recipe.kv_ranges
    return graphs


def _inputs(spec: TargetSpec, graph: Graph, own: dict[str, Any]) -> Inputs:
    dtype = torch.float32 if graph.kv_ranges is None else torch.int8
    past = {}
    for layer in spec.kv_layers:
        if layer.index in graph.layers:
            shape = (1, layer.num_kv_heads, _SAMPLE_ROWS, layer.head_dim)
            past.update({name: torch.zeros(shape, dtype=dtype) for name in past_names(layer.index)})
    num_tokens = torch.export.Dim("num_tokens", min=1, max=1 << 20)
    max_rows = torch.export.Dim("max_rows", min=ROW_MULTIPLE, max=1 << 24)
    dynamic: dict[str, Any] = {
        name: {1: num_tokens} if tensor.shape[1] > 1 else None for name, tensor in own.items()
    }
    return Inputs(
        {**own, "position": torch.tensor([1]), "past": past},
        {**dynamic, "position": None, "past": {name: {2: max_rows} for name in past}},
    )


def _lower(job: Job, folder: Path, on_step: OnStep) -> Lowered:
    files = lower(job.target, job.drafter, job.shapes, job.recipe, folder, on_step)
    return Lowered(files, f"{len(files) - 1} graphs")


LOWERING = Lowering(name="onnx", check=check, lower=_lower)
