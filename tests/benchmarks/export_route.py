"""Lower a checkpoint pair by one route, in a process whose memory is watched from outside.

    python -m tests.benchmarks.export_route STACK GRAPHS_JSON OUT

Routes: `ours` is what gemma-export does for LiteRT, `executorch` and `onnx` what it does for those.
`stock` converts the same modules with their real weights by plain litert_torch and quantizes the
files with ai-edge-quantizer; `stock-light` does it with litert_torch's lightweight_conversion.
`imports` only loads LiteRT's packages. OUT also gets `weight_bytes`: what the weights themselves
take as the recipe stores them.
"""

import json
import sys
from pathlib import Path
from typing import Any

from exporter.checkpoint.reader import (
    DrafterCheckpoint,
    TargetCheckpoint,
    read_checkpoint,
    read_drafter,
)
from exporter.config import GraphShapes
from exporter.graph.drafter import Drafter
from exporter.graph.sliding import sliding_layers
from exporter.graph.target import Embedder, PerLayerEmbedder, Target
from exporter.graph.weights import load_weights
from exporter.lower.litert.lower import lower as lower_litert
from exporter.lower.litert.modules import (
    PRIMITIVES,
    drafter_signature,
    embedder_signature,
    target_signatures,
)
from exporter.lower.litert.pack import pack, version_stamp
from exporter.lower.litert.vendor import Signature
from exporter.quantize import DRAFTER_PREFIX, load_recipe, plan, size_bytes
from exporter.text.files import read_text_files
from tests.benchmarks.inputs import Graphs


def ours(target: TargetCheckpoint, drafter: DrafterCheckpoint, graphs: Graphs, out: Path) -> None:
    shapes = _shapes(graphs)
    lower_litert(target, drafter, shapes, load_recipe(graphs.recipe), out)
    text = read_text_files(target.folder)
    stamp = version_stamp(graphs.recipe, sliding_layers(target.spec))
    pack(out, text, shapes.cache_length, stamp, out / graphs.model)


def executorch(
    target: TargetCheckpoint, drafter: DrafterCheckpoint, graphs: Graphs, out: Path
) -> None:
    # Here, because the memory of the other routes is measured.
    from exporter.lower.executorch.lower import lower

    recipe = load_recipe(graphs.recipe)
    lower(target, drafter, _shapes(graphs), recipe, out / graphs.model)


def onnx(target: TargetCheckpoint, drafter: DrafterCheckpoint, graphs: Graphs, out: Path) -> None:
    from exporter.lower.onnx.lower import lower

    lower(target, drafter, _shapes(graphs), load_recipe(graphs.recipe), out)


def stock(target: TargetCheckpoint, drafter: DrafterCheckpoint, graphs: Graphs, out: Path) -> None:
    """The same files one after the other, each with its weights in memory."""
    shapes, spec = _shapes(graphs), target.spec
    for stem, embedder in (
        ("embedder", Embedder(spec)),
        ("per_layer_embedder", PerLayerEmbedder(spec)),
    ):
        load_weights(embedder, target, virtual=False)
        _convert([embedder_signature(embedder, stem)], graphs, out / f"{stem}.tflite")
    decoder = Target(spec, PRIMITIVES)
    load_weights(decoder, target, virtual=False)
    _convert(target_signatures(decoder, shapes), graphs, out / "prefill_decode.tflite")
    module = Drafter(drafter.spec, PRIMITIVES)
    load_weights(module, drafter, virtual=False)
    _convert([drafter_signature(module, spec, shapes)], graphs, out / "mtp_drafter.tflite")


def imports(
    target: TargetCheckpoint, drafter: DrafterCheckpoint, graphs: Graphs, out: Path
) -> None:
    """Nothing but what every route loads."""
    del target, drafter, graphs, out
    import litert_lm_builder  # noqa: F401
    import litert_torch  # noqa: F401


def _convert(signatures: list[Signature], graphs: Graphs, path: Path) -> None:
    import litert_torch

    converter: Any = litert_torch
    for one in signatures:
        converter = converter.signature(one.name, one.module.eval(), sample_kwargs=dict(one.sample))
    options = {"lightweight_conversion": True} if graphs.route == "stock-light" else {}
    converter.convert(strict_export=False, **options).export(str(path))
    if graphs.recipe != "float32":
        _quantize(path, graphs.recipe)


def _quantize(path: Path, recipe_name: str) -> None:
    """With the one recipe for all tensors: the quantizer knows none of their names."""
    from ai_edge_quantizer import quantizer, recipe

    rules = {"int8": recipe.dynamic_wi8_afp32, "int4": recipe.dynamic_wi4_afp32}[recipe_name]
    made = quantizer.Quantizer(str(path), rules()).quantize(enable_progress_report=False)
    quantized = path.with_suffix(".quantized")
    made.export_model(str(quantized), overwrite=True)
    quantized.rename(path)


def _shapes(graphs: Graphs) -> GraphShapes:
    return GraphShapes(
        prefill_lengths=tuple(graphs.prefill_lengths),
        verify_widths=tuple(graphs.verify_widths),
        cache_length=graphs.cache_length,
    )


def _weight_bytes(target: TargetCheckpoint, drafter: DrafterCheckpoint, recipe_name: str) -> int:
    recipe = load_recipe(recipe_name)
    return sum(
        size_bytes(checkpoint.shape(name), kind)
        for checkpoint, prefix in ((target, ""), (drafter, DRAFTER_PREFIX))
        for name, kind in plan(checkpoint, recipe, prefix).items()
    )


ROUTES = {
    "executorch": executorch,
    "imports": imports,
    "onnx": onnx,
    "ours": ours,
    "stock": stock,
    "stock-light": stock,
}


def main() -> None:
    stack, graphs, out = Path(sys.argv[1]), Graphs(**json.loads(sys.argv[2])), Path(sys.argv[3])
    target = read_checkpoint(stack / "target")
    drafter = read_drafter(stack / "drafter", target)
    out.mkdir(parents=True, exist_ok=True)
    ROUTES[graphs.route](target, drafter, graphs, out)
    (out / "weight_bytes").write_text(str(_weight_bytes(target, drafter, graphs.recipe)))


if __name__ == "__main__":
    main()
