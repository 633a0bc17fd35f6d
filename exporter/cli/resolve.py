"""From options to one configuration."""

import os
from dataclasses import replace
from pathlib import Path

import click

from exporter.cli.options import FormatOptions, ModelOptions, OutputOptions
from exporter.config import (
    DEVICES,
    ExportConfig,
    GraphShapes,
    HubModel,
    Location,
    ModelSource,
    load_size,
)


def resolve(
    device: str, model: ModelOptions, form: FormatOptions, place: OutputOptions
) -> ExportConfig:
    """One configuration, with the target's defaults where no option was given.

    Raises:
        click.UsageError: for options that contradict each other.
    """
    source = _source(model)
    defaults = DEVICES[device]
    longest = source.max_context_length or defaults.context_length
    context_length = form.context_length or min(defaults.context_length, longest)
    runtimes = form.runtimes or source.runtimes or defaults.runtimes
    if defaults.page and "litert" not in runtimes:
        raise click.UsageError(f"the page of --target {device} runs LiteRT; add --runtime litert")
    return ExportConfig(
        source=source,
        output=place.output or Path(f"{source.name}-{device}"),
        overwrite=place.overwrite,
        device=device,
        runtimes=runtimes,
        recipe=form.recipe or defaults.recipe,
        shapes=GraphShapes(
            prefill_lengths=source.prefill_lengths, verify_widths=defaults.verify_widths
        ).within(context_length),
        draft_length=defaults.draft_length,
        requantize=form.requantize,
        kv=form.kv,
        context_asked=form.context_length is not None,
    )


def _source(options: ModelOptions) -> ModelSource:
    model = options.model
    if isinstance(model, Path) and os.path.isfile(model):
        from exporter.checkpoint.kinds import require_folder  # imports torch

        require_folder(model)  # what it is goes before what else an export needs
    source = _pair(options)
    if options.adapter is not None:
        name = f"{source.name}+{options.adapter.resolve().name}"
        source = replace(source, name=name, adapter=options.adapter)
    return source if options.prompts is None else replace(source, prompts=options.prompts)


def _pair(options: ModelOptions) -> ModelSource:
    model, drafter = options.model, options.drafter
    if drafter is not None and options.no_drafter:
        raise click.UsageError("--drafter and --no-drafter contradict each other")
    if options.size is not None:
        source = load_size(options.size)
    elif model is None:
        raise click.UsageError("say what to export: --size or --model")
    elif drafter is None and not options.no_drafter:
        raise click.UsageError("--model needs its --drafter, --no-drafter, or its --size")
    else:
        source = ModelSource(name=_name(model), model=model, drafter=None)
    if model is not None:
        source = replace(source, name=_name(model), model=model)
    if drafter is not None or options.no_drafter:
        source = replace(source, drafter=drafter)
    return source


def _name(model: Location) -> str:
    return model.repo.split("/")[1] if isinstance(model, HubModel) else model.resolve().name
