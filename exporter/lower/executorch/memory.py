"""Keep ExecuTorch from holding weights more often than it must."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager


@contextmanager
def lent_weights() -> Iterator[None]:
    """Let XNNPACK read the weights of a delegate where they are.

    ExecuTorch 1.5.1 copies the programs of all delegates, weights and all, before the first is
    lowered, "in case backends change graph inside preprocess method". XNNPACK changes the graph;
    what it makes of a weight is a new tensor.
    """
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend

    def copy_graph(_cls: type, program: torch.export.ExportedProgram, _specs: Any) -> Any:
        tensors = (*program.state_dict.values(), *program.constants.values())
        return copy.deepcopy(program, {id(t): t for t in tensors if isinstance(t, Tensor)})

    name = "copy_exported_program_for_preprocess"
    setattr(XnnpackBackend, name, classmethod(copy_graph))
    try:
        yield
    finally:
        delattr(XnnpackBackend, name)  # it was its parent's


def forget_delegated_weights(edge: "EdgeProgramManager") -> None:
    """Free the weights that XNNPACK has packed; the shapes stay, which is all that is asked for.

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


def _used(program: torch.export.ExportedProgram) -> Iterator[Tensor]:
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.users and node.name in names:
            tensor = program.state_dict.get(names[node.name])
            if tensor is not None:
                yield tensor
    yield from (t for t in program.constants.values() if isinstance(t, Tensor))
