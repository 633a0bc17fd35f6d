"""Traced methods to a .pte."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporter.lower.executorch import vendor
from exporter.lower.executorch.one_copy import write_once
from exporter.lower.lowering import OnStep


@dataclass(frozen=True)
class Method:
    """One method of the program before tracing."""

    module: nn.Module
    sample: tuple[Tensor, ...]
    dynamic_shapes: tuple[Any, ...] | None


def write_program(
    methods: Mapping[str, Method],
    constants: Mapping[str, int | Tensor],
    named_data: Mapping[str, bytes],
    out: Path,
    on_step: OnStep,
) -> None:
    """Trace, delegate to XNNPACK and write the methods over one shared arena of buffers.

    `constants` become methods that return numbers, `named_data` lies beside XNNPACK's own.
    """
    with torch.no_grad(), vendor.quiet():
        vendor.register_operators()
        num_steps = len(methods) + 3
        traced: dict[str, torch.export.ExportedProgram] = {}
        for name, method in methods.items():
            on_step(len(traced), num_steps)
            traced[name] = trace(method)
        on_step(len(traced), num_steps)
        edge = vendor.delegate(traced, constants)
        traced.clear()
        vendor.forget_delegated_weights(edge)
        on_step(num_steps - 2, num_steps)
        emitted = vendor.emit(edge, named_data)
        on_step(num_steps - 1, num_steps)
    write_once(emitted, out)
    on_step(num_steps, num_steps)


def trace(method: Method) -> torch.export.ExportedProgram:
    return torch.export.export(
        method.module, method.sample, dynamic_shapes=method.dynamic_shapes, strict=False
    )
