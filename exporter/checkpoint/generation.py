"""Read generation_config.json as transformers' generate() does, and refuse settings we lack.

Source: GenerationConfig and _get_logits_processor of transformers 5.24.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.checkpoint.files import read_json
from exporter.errors import ExportError
from runtime_py.terminal.printable import shown

logger = logging.getLogger(__name__)

FILE = "generation_config.json"
# Settings that change greedy text -> the values, besides null, that turn them off.
NOT_BUILT: Mapping[str, Sequence[Any]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": ([],),
    "constraints": (),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "repetition_penalty": (1,),
    "sequence_bias": (),
    "stop_strings": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
}
# The same for settings that change sampled text only.
NOT_SAMPLED: Mapping[str, Sequence[Any]] = {
    "epsilon_cutoff": (0, 1),
    "eta_cutoff": (0, 1),
    "min_p": (0,),
    "top_h": (),
    "typical_p": (1,),
}
# Key -> what its value must be.
_SAMPLING = {
    "temperature": "a number above 0 and below 2147483648",
    "top_k": "an integer from 0 (off) to 2147483647",
    "top_p": "a number from 0 to 1 (off)",
}


def read_generation(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings, without those that are null, which means the default.

    Args:
        folder: of the checkpoint.
        config: its config.json, which holds the settings in old checkpoints.

    Raises:
        ExportError: for a malformed setting, or one that changes greedy text and is not supported.
    """
    path = folder / FILE
    if path.is_file():
        values: Mapping[str, Any] = read_json(path)
    else:
        path = folder / "config.json"
        nested = config.get("text_config")
        values = {**(nested if isinstance(nested, dict) else {}), **_without_nulls(config)}
    found = _without_nulls(values)
    for key, harmless in NOT_BUILT.items():
        if key in found and found[key] not in harmless:
            raise ExportError(
                f"{path}: {key} is {shown(repr(found[key]))}, which changes the text and is not "
                "supported; remove it to export the model without it"
            )
    _check_sampling(path, found)
    return found


def suppressed_ids(generation: Mapping[str, Any], vocab_size: int, folder: Path) -> tuple[int, ...]:
    """The tokens that must never be generated (`suppress_tokens`), ascending.

    Raises:
        ExportError: unless they are different token ids of the vocabulary, and leave one.
    """
    ids = generation.get("suppress_tokens", [])
    good = isinstance(ids, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < vocab_size
        for item in ids
    )
    if not good or len(set(ids)) != len(ids) or len(ids) >= vocab_size:
        raise ExportError(
            f"{folder / FILE}: suppress_tokens is {shown(repr(ids))}, needed are different token "
            f"ids from 0 to {vocab_size - 1}, not all of them; correct or remove it"
        )
    return tuple(sorted(ids))


def _check_sampling(path: Path, generation: Mapping[str, Any]) -> None:
    samples = generation.get("do_sample", False)
    if not isinstance(samples, bool):
        raise _wrong(path, "do_sample", samples, "true or false")
    for key, needed in _SAMPLING.items():
        value = generation.get(key)
        if value is not None and not _fits(key, value, samples):
            raise _wrong(path, key, value, needed)


def report_ignored(generation: Mapping[str, Any], folder: Path) -> None:
    """Warn of settings that change sampled text and are not supported."""
    ignored = [
        key
        for key, harmless in NOT_SAMPLED.items()
        if key in generation and generation[key] not in harmless
    ]
    if ignored and generation.get("do_sample", False):
        logger.warning(
            "text        %s: not supported and ignored when sampling: %s",
            folder / FILE,
            ", ".join(ignored),
        )


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _fits(key: str, value: object, samples: bool) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if key == "top_k":
        return isinstance(value, int) and 0 <= value < 2**31
    if key == "top_p":
        return 0 <= value <= 1
    # Some write 0 for "no sampling"; with sampling, transformers refuses 0.
    return 0 < value < 2**31 or (value == 0 and not samples)


def _wrong(path: Path, key: str, value: object, needed: str) -> ExportError:
    return ExportError(
        f"{path}: {key} is {shown(repr(value))}, needed is {needed}; correct or remove it"
    )
