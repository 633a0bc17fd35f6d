"""The fence around ExecuTorch: private parts of it are used here and nowhere else.

pyproject.toml pins the release. tests/exporter/lower/executorch/test_oracle.py compares what stands
here with what ExecuTorch's public functions make, and with eager torch. Imports stand in the
functions: ExecuTorch takes seconds to load, which exports to other runtimes need not pay.
"""

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from exporter.quiet import TORCHAO, only_errors

if TYPE_CHECKING:
    from executorch.exir import (
        EdgeProgramManager,
        ExecutorchBackendConfig,
        ExecutorchProgramManager,
    )

PACKAGES = ("executorch",)
LEFT_OUT = bytes(1)  # not empty: a segment without bytes has no field for its size

Traced = torch.export.ExportedProgram


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the tools' own deprecations and missing extras while they work."""
    with only_errors(*TORCHAO), warnings.catch_warnings(action="ignore"):
        yield


def promise(condition: bool) -> None:
    """Tell the tracer that a condition on a symbolic size holds; memory is planned by it."""
    torch._check(condition)  # type: ignore[no-untyped-call]


def register_operators() -> None:
    """Make torch.ops.llama and ExecuTorch's kernels for quantized embeddings known."""
    from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401


def delegate(traced: Mapping[str, Traced], constants: Mapping[str, Any]) -> "EdgeProgramManager":
    """Lower the methods, with all that XNNPACK takes of them delegated to it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    with lent_weights():
        return to_edge_transform_and_lower(
            dict(traced),
            partitioner={name: [XnnpackPartitioner()] for name in traced},
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=dict(constants),
        )


@contextmanager
def lent_weights() -> Iterator[None]:
    """Let XNNPACK read the weights of a delegate in place.

    ExecuTorch 1.5.1 copies the programs of all delegates, weights included, before it lowers the
    first, "in case backends change graph inside preprocess method". XNNPACK changes the graph, but
    never a weight: it makes a new tensor of it.
    """
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend

    def copy_graph(_cls: type, program: Traced, _specs: Any) -> Any:
        tensors = (*program.state_dict.values(), *program.constants.values())
        return copy.deepcopy(program, {id(t): t for t in tensors if isinstance(t, Tensor)})

    name = "copy_exported_program_for_preprocess"
    setattr(XnnpackBackend, name, classmethod(copy_graph))
    try:
        yield
    finally:
        delattr(XnnpackBackend, name)  # uncovers the parent's


def forget_delegated_weights(edge: "EdgeProgramManager") -> None:
    """Free the weights that XNNPACK has packed; their shapes stay, and nothing else is read.

    A weight that some method still uses outside of its delegates stays: a tied float32 embedding.
    """
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    programs = [edge.exported_program(name) for name in edge.methods]
    used = {t.untyped_storage().data_ptr() for program in programs for t in _used(program)}
    for program in programs:
        for module in program.graph_module.modules():
            if isinstance(module, LoweredBackendModule):
                delegated = module.original_module
                # Not buffers: a method keeps in the file even those that only others use.
                for name in delegated.graph_signature.parameters:
                    tensor = delegated.state_dict[name]
                    if tensor.untyped_storage().data_ptr() not in used:
                        tensor.data = tensor.new_zeros([1] * tensor.dim()).expand(tensor.shape)


def _used(program: Traced) -> Iterator[Tensor]:
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.users and node.name in names:
            tensor = program.state_dict.get(names[node.name])
            if tensor is not None:
                yield tensor
    yield from (t for t in program.constants.values() if isinstance(t, Tensor))


@dataclass(frozen=True)
class Emitted:
    """A finished program, to be written to a file."""

    manager: "ExecutorchProgramManager"
    config: "ExecutorchBackendConfig"

    @cached_property
    def constants(self) -> list[bytes]:
        """What the constant segment holds, in order."""
        return [buffer.storage for buffer in self.manager.executorch_program.constant_buffer]

    @cached_property
    def named(self) -> dict[str, bytes]:
        """Key -> named data: XNNPACK's weights, and our own."""
        data = self.manager._named_data
        if data is None:
            return {}
        return {key: data.buffers[entry.buffer_index] for key, entry in data.pte_data.items()}

    def write(self, file: BinaryIO) -> None:
        """Write what ExecuTorch writes by itself."""
        self.manager.write_to_file(file)

    def write_without(
        self, constants: Collection[int], first: Collection[str], file: BinaryIO
    ) -> None:
        """Write the program with `constants` left out and the named data `first` at the front."""
        from executorch.exir._serialize._program import PTEFile, serialize_pte_binary

        program, data, config = (
            self.manager.executorch_program,
            self.manager._named_data,
            self.config,
        )
        kept = [
            replace(buffer, storage=LEFT_OUT) if index in constants else buffer
            for index, buffer in enumerate(program.constant_buffer)
        ]
        assert data is not None
        order = sorted(data.pte_data, key=lambda key: key not in first)
        serialize_pte_binary(
            PTEFile(
                program=replace(program, constant_buffer=kept),
                mutable_data=self.manager._emitter_output.mutable_data,
                named_data=replace(data, pte_data={key: data.pte_data[key] for key in order}),
            ),
            extract_delegate_segments=config.extract_delegate_segments,
            segment_alignment=config.segment_alignment,
            constant_tensor_alignment=config.constant_tensor_alignment,
            delegate_alignment=config.delegate_alignment,
        ).write_to_file(file)


def emit(edge: "EdgeProgramManager", named_data: Mapping[str, bytes]) -> Emitted:
    """Plan the memory, over one arena of buffers that all methods share, and emit the program."""
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    config = ExecutorchBackendConfig(
        memory_planning_pass=MemoryPlanningPass(
            alloc_graph_input=False, share_mutable_buffers=True
        ),
        extract_delegate_segments=True,
        emit_mutable_buffer_names=True,
        # It folds buffers that a method only reads into constants: a drafter that sees no KV.
        do_quant_fusion_and_const_prop=False,
    )
    for key, data in named_data.items():
        edge._named_data_store.add_named_data(key, data)
    return Emitted(edge.to_executorch(config), config)
