"""Traced methods to a .pte: everything here is ExecuTorch's own machinery, and its traps."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporter.lower.executorch.memory import forget_delegated_weights, lent_weights
from exporter.lower.executorch.one_copy import write_once

PACKAGES = ("executorch",)


@dataclass(frozen=True)
class Method:
    """One method of the program before tracing."""

    module: nn.Module
    sample: tuple[Tensor, ...]
    dynamic_shapes: tuple[Any, ...] | None


OnStep = Callable[[int, int], None]  # steps done, of how many in all


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
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge_transform_and_lower,
    )
    from executorch.exir.passes import (
        MemoryPlanningPass,
        _quant_patterns_and_replacements,  # noqa: F401  embeddings
    )
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers llama.*

    planning = MemoryPlanningPass(alloc_graph_input=False, share_mutable_buffers=True)
    config = ExecutorchBackendConfig(
        memory_planning_pass=planning,
        extract_delegate_segments=True,
        emit_mutable_buffer_names=True,
        # It folds buffers that a method only reads into constants: a drafter that sees no KV.
        do_quant_fusion_and_const_prop=False,
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tools' own deprecations
        num_steps = len(methods) + 3
        traced: dict[str, torch.export.ExportedProgram] = {}
        for name, method in methods.items():
            on_step(len(traced), num_steps)
            traced[name] = trace(method)
        on_step(len(traced), num_steps)
        with lent_weights():
            edge = to_edge_transform_and_lower(
                traced,
                partitioner={name: [XnnpackPartitioner()] for name in traced},
                compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
                constant_methods=dict(constants),
            )
        traced.clear()
        forget_delegated_weights(edge)
        on_step(num_steps - 2, num_steps)
        for key, data in named_data.items():
            edge._named_data_store.add_named_data(key, data)
        program = edge.to_executorch(config)
        on_step(num_steps - 1, num_steps)
    write_once(program, config, out)
    on_step(num_steps, num_steps)


def trace(method: Method) -> torch.export.ExportedProgram:
    return torch.export.export(
        method.module, method.sample, dynamic_shapes=method.dynamic_shapes, strict=False
    )
