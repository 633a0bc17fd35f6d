"""The story: checkpoint -> graph -> quantize -> lower -> bundle."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from exporter.bundle.staging import staged
from exporter.bundle.writer import BundleContents, add_page, write_bundle
from exporter.checkpoint.adapter import Adapter
from exporter.checkpoint.context import fit_context
from exporter.checkpoint.reader import (
    DrafterCheckpoint,
    TargetCheckpoint,
    read_checkpoint,
    read_drafter,
)
from exporter.config import (
    DEVICES,
    ExportConfig,
    GraphShapes,
    HubModel,
    Location,
)
from exporter.errors import ExportError
from exporter.estimate.export import (
    Estimate,
    count_passes,
    estimate,
    refuse_large_page,
    refuse_small_disk,
    report_estimate,
)
from exporter.estimate.work import measure_work
from exporter.hub.sources import find_folders
from exporter.lower import executorch, litert, onnx
from exporter.lower.lowering import Job, Lowering, refuse_int8_rows
from exporter.original import vendor as transformers_vendor
from exporter.original.long_prompt import with_long_prompt
from exporter.original.model import Original
from exporter.original.record import (
    Prompt,
    Recorded,
    ReferenceSize,
    choose_prompts,
    read_prompts,
    record_reference,
    reference_size,
)
from exporter.progress import Bar, no_bar
from exporter.quantize import (
    DRAFTER_PREFIX,
    Recipe,
    WeightType,
    load_recipe,
    plan,
    report,
)
from exporter.text.files import TextFiles, read_text_files
from exporter.text.proof import prove_text
from runtime_py.bundle.manifest import (
    Manifest,
    ModelEntry,
    RuntimeEntry,
    RuntimeName,
)
from runtime_py.bundle.reference import Reference
from runtime_py.terminal.printable import shown

logger = logging.getLogger(__name__)

AnyCheckpoint = TargetCheckpoint | DrafterCheckpoint
LOWERINGS: Mapping[RuntimeName, Lowering] = {
    one.name: one for one in (litert.LOWERING, executorch.LOWERING, onnx.LOWERING)
}


@dataclass(frozen=True)
class Inputs:
    """What every later stage reads."""

    target: TargetCheckpoint
    drafter: DrafterCheckpoint | None
    text: TextFiles
    prompts: list[Prompt]
    recipe: Recipe
    sources: Mapping[str, str]  # "target" and "drafter" -> repository@commit, where downloaded

    @property
    def checkpoints(self) -> dict[str, AnyCheckpoint]:
        """Checkpoints by the prefix of their tensors in a recipe."""
        drafter = {} if self.drafter is None else {DRAFTER_PREFIX: self.drafter}
        return {"": self.target, **drafter}


def export(config: ExportConfig, bar: Bar = no_bar) -> Manifest:
    """Make the bundle `config.output`.

    Raises:
        ExportError: if the input cannot be exported; then nothing is left behind.
    """
    start = time.monotonic()
    logger.info("export      %s", config)
    with staged(config.output, config.overwrite, config.sources) as folder:
        inputs = read_inputs(config, bar)
        config = fit_context(config, inputs.target)
        recording = plan_recording(config, inputs)
        refuse_small_disk(foresee(config, inputs, recording), folder)
        recorded = record(recording, inputs, bar)
        if config.kv == "int8":
            inputs = replace(inputs, recipe=inputs.recipe.with_int8_rows(recorded.kv_ranges))
        runtimes: dict[RuntimeName, RuntimeEntry] = {}
        for prefix, checkpoint in inputs.checkpoints.items():
            report(checkpoint, inputs.recipe, prefix)
        for name in config.runtimes:
            runtimes[name] = RuntimeEntry(
                model=lower(LOWERINGS[name], inputs, config.shapes, folder, bar),
                recipe=inputs.recipe.name,
                tolerances=inputs.recipe.tolerances,
            )
        contents = BundleContents(
            name=config.source.name,
            device=config.device,
            model=_model_entry(config, inputs),
            text=inputs.text,
            special_tokens=recording.special_tokens,
            draft_length=config.draft_length if inputs.drafter else 0,
            runtimes=runtimes,
            reference=recorded.reference,
            sources=inputs.sources,
        )
        if DEVICES[config.device].page:
            add_page(folder)
        manifest = write_bundle(folder, contents)
    logger.info("done        %s, %.0f s", config.output, time.monotonic() - start)
    return manifest


def read_inputs(config: ExportConfig, bar: Bar = no_bar) -> Inputs:
    """Download, open and check everything the user named, before any work is done."""
    source = config.source
    transformers_vendor.check()
    if config.kv == "int8":
        wanted = [LOWERINGS[name] for name in config.runtimes]
        refuse_int8_rows(config.device, wanted, LOWERINGS.values())
    recipe = load_recipe(config.recipe)
    prompts = read_prompts(source.prompts)
    folders = find_folders(source, bar)
    target = read_checkpoint(folders.target, source.adapter, keep_integers=not config.requantize)
    drafter = None if folders.drafter is None else read_drafter(folders.drafter, target)
    text = read_text_files(target.folder, source.adapter)
    inputs = Inputs(target, drafter, text, prompts, recipe, folders.commits)
    for name in config.runtimes:
        LOWERINGS[name].check(_types(inputs))
    logger.info("checkpoint  %s, %.2f M weights", source.model, _num_weights(target) / 1e6)
    if target.adapter is not None:
        _report_adapter(target.adapter, source.model)
    if drafter is not None:
        logger.info("checkpoint  %s, %.2f M weights", source.drafter, _num_weights(drafter) / 1e6)
    return inputs


def _report_adapter(adapter: Adapter, model: Location) -> None:
    logger.info(
        "adapter     %s changes %d tensors, trained on %s",
        adapter.folder,
        len(adapter.names),
        shown(adapter.base_name or "a model it does not name"),
    )
    name = model.repo if isinstance(model, HubModel) else str(model.resolve())
    if adapter.base_name and Path(adapter.base_name).name != Path(name).name:
        logger.warning("adapter     is %s that model? The names differ", model)
    if adapter.ignored:
        logger.warning(
            "adapter     ignored %d modules of other modalities: %s",
            len(adapter.ignored),
            shown(", ".join(adapter.ignored), 200),
        )


def _types(inputs: Inputs) -> dict[str, WeightType]:
    return {
        prefix + name: kind
        for prefix, checkpoint in inputs.checkpoints.items()
        for name, kind in plan(checkpoint, inputs.recipe, prefix).items()
    }


def _num_weights(checkpoint: AnyCheckpoint) -> int:
    return sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())


def num_multiplied(target: TargetCheckpoint) -> int:
    """Weights that every token is multiplied with; tables that are only looked up do not count."""
    tables = {"embed_tokens.weight", "embed_tokens_per_layer.weight"} - {target.spec.head_name}
    return sum(math.prod(target.shape(name)) for name in target.names() if name not in tables)


@dataclass(frozen=True)
class Recording:
    """What to record of the original."""

    size: ReferenceSize
    prompts: list[tuple[str, Sequence[int]]]  # text and token ids
    special_tokens: Mapping[str, str]  # name -> text, for the bundle's chat template


def plan_recording(config: ExportConfig, inputs: Inputs) -> Recording:
    """Choose the prompts that fit the context.

    Raises:
        ExportError: if no prompt fits, or if the bundle's tokenizer would not say the same.
    """
    source = config.source
    size = reference_size(num_multiplied(inputs.target), config.draft_length)
    proven = prove_text(inputs.text, inputs.prompts, inputs.target.spec.vocab_size)
    chosen = choose_prompts(proven.prompts, size, config.shapes.cache_length)
    if not chosen:
        raise ExportError(
            f"{source.prompts}: no prompt leaves room for {size.num_tokens} tokens in a context of "
            f"{config.shapes.cache_length}; give shorter prompts or a larger --context"
        )
    cache_length, spec = config.shapes.cache_length, inputs.target.spec
    chosen = with_long_prompt(chosen, size, cache_length, spec, proven.encode)
    return Recording(size, chosen, proven.special_tokens)


def foresee(config: ExportConfig, inputs: Inputs, recording: Recording) -> Estimate:
    """Estimate and report what the export will take."""
    text_bytes = inputs.text.tokenizer.stat().st_size
    work = measure_work(
        inputs.target, inputs.drafter, inputs.recipe, config.shapes, text_bytes, config.kv
    )
    if DEVICES[config.device].page:
        refuse_large_page(work)
    lengths = [len(ids) for _, ids in recording.prompts]
    passes = count_passes(work, recording.size, lengths)
    found = estimate(work, passes, config.runtimes)
    report_estimate(found)
    return found


def record(recording: Recording, inputs: Inputs, bar: Bar) -> Recorded:
    """Run the original."""
    start = time.monotonic()
    size = recording.size
    original = Original(inputs.target, inputs.drafter)
    with bar("reference", size.num_tokens, "tokens") as progress:
        recorded = record_reference(original, recording.prompts, size, progress)
    _refuse_numbers_that_are_none(inputs, recorded.reference)
    logger.info(
        "reference   %d prompts x %d tokens, %.0f s",
        len(recording.prompts),
        size.num_tokens,
        time.monotonic() - start,
    )
    return recorded


def _refuse_numbers_that_are_none(inputs: Inputs, reference: Reference) -> None:
    if np.isfinite(reference.probe_logits).all():
        return
    for checkpoint in inputs.checkpoints.values():
        checkpoint.check_finite()
    raise ExportError(
        f"{inputs.target.folder}: the original's logits are NaN or infinite, though no weight is; "
        "some weights are too large. Give a checkpoint from before training diverged"
    )


def _model_entry(config: ExportConfig, inputs: Inputs) -> ModelEntry:
    spec = inputs.target.spec
    return ModelEntry(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_layers=len(spec.layers),
        context_length=config.shapes.cache_length,
        has_drafter=inputs.drafter is not None,
    )


def lower(
    lowering: Lowering, inputs: Inputs, shapes: GraphShapes, folder: Path, bar: Bar = no_bar
) -> str:
    """Write one runtime's files into the folder, and name the one that the runtime loads."""
    start = time.monotonic()
    job = Job(
        target=inputs.target,
        drafter=inputs.drafter,
        text=inputs.text,
        recipe=inputs.recipe,
        shapes=shapes,
    )
    with bar("lower", 100, "%") as progress:
        lowered = lowering.lower(
            job, folder, lambda done, total: progress(100 * done // max(1, total))
        )
    logger.info(
        "lower       %s, %s, %.1f MB, %.0f s",
        lowering.name,
        lowered.contents,
        sum(file.stat().st_size for file in lowered.files) / 1e6,
        time.monotonic() - start,
    )
    return lowered.files[0].name
