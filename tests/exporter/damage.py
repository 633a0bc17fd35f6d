"""Ways to damage a checkpoint, for the tests of the readers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.errors import ExportError
from runtime_py.terminal.printable import one_line

WEIGHTS = "model.safetensors"
NONSENSE = [None, True, "8", 1.5, 0, -1, 10**30, [], {}]


def complaint(call: Callable[..., object], *args: Any) -> str | None:
    """The message of the ExportError, which must be one short printable line, or None."""
    try:
        call(*args)
    except ExportError as error:
        message = str(error)
    else:
        return None
    if one_line(message) != message or len(message) > 600:
        raise ValueError(f"not one short line: {message!r}")
    return message


def error_of(call: Callable[..., object], *args: Any) -> str:
    """The complaint there must be."""
    message = complaint(call, *args)
    if message is None:
        pytest.fail("no ExportError")
    return message


def edit_config(folder: Path, part: str | None = None, /, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config if part is None else config[part]).update(changes)
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
