"""The context of a bundle: the target's default, the user's, or what the model was made for."""

import dataclasses
import logging
from pathlib import Path

import pytest

from exporter.checkpoint.context import fit_context
from exporter.checkpoint.reader import read_checkpoint
from exporter.config import ExportConfig, GraphShapes, ModelSource
from tests.exporter.damage import edit_config, error_of


@pytest.fixture
def config(target):
    """As `--target desktop` has it."""
    return ExportConfig(
        source=ModelSource(name="mine", model=target, drafter=None),
        output=Path("out"),
        overwrite=False,
        device="desktop",
        runtimes=("litert",),
        recipe="int8",
        shapes=GraphShapes(cache_length=8192),
        draft_length=3,
        context_asked=False,
    )


def made_for(folder: Path, length: object):
    edit_config(folder, max_position_embeddings=length)
    return read_checkpoint(folder)


def test_a_default_gives_way_to_the_model(config, target, caplog):
    with caplog.at_level(logging.INFO, "exporter"):
        shapes = fit_context(config, made_for(target, 512)).shapes
    assert (shapes.cache_length, shapes.prefill_lengths) == (512, (128,))
    assert caplog.messages == [
        "context     512 tokens, which the model was made for (desktop: 8192)"
    ]


def test_what_was_asked_for_is_kept_or_refused(config, target):
    asked = dataclasses.replace(config, context_asked=True)
    checkpoint = made_for(target, 8192)
    assert fit_context(asked, checkpoint) == asked
    said = error_of(fit_context, asked, made_for(target, 8191))
    assert "the model was made for 8191 tokens, --context asks for 8192" in said


@pytest.mark.parametrize("length", [True, "512", 0, -1, 1.5, 2**70])
def test_a_length_that_is_none(config, target, length):
    assert "max_position_embeddings" in error_of(fit_context, config, made_for(target, length))


def test_a_model_that_does_not_say(config, target):
    assert fit_context(config, made_for(target, None)) == config
