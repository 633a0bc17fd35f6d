"""Load the weights, real or virtual, of a module built on the meta device."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn


class TensorSource(Protocol):
    """Where weights come from: a Checkpoint."""

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, float32."""

    def integers(self, name: str) -> Tensor:
        """The whole tensor of an integer table, int32."""


def load_weights(module: nn.Module, checkpoint: TensorSource, virtual: bool) -> None:
    """Replace every meta parameter and buffer of `module` by the checkpoint's tensor of its name.

    Args:
        module: Embedder, PerLayerEmbedder, Target or Drafter.
        checkpoint: the target's, or the drafter's for a Drafter.
        virtual: matrices and stacks of matrices take no memory: each is one zero, expanded to the
            shape, with its own storage. Vectors and integer tables are always real.
    """
    for name, parameter in list(module.named_parameters()):
        if not parameter.is_meta:  # a constant of the graph
            continue
        owner, leaf = _owner(module, name)
        setattr(owner, leaf, _parameter(parameter, name, checkpoint, virtual))
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, leaf = _owner(module, name)
            setattr(owner, leaf, checkpoint.integers(name))


def expected_tensors(modules: Iterable[nn.Module]) -> Mapping[str, tuple[int, ...]]:
    """Every checkpoint tensor the modules need: normalised name -> shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module in modules:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_meta:
                shapes[name] = tuple(tensor.shape)
    return shapes


def is_virtual(tensor: Tensor) -> bool:
    """Whether this is a matrix without numbers, as `load_weights` makes it."""
    return tensor.dim() >= 2 and tensor.untyped_storage().nbytes() == tensor.element_size()


def _parameter(
    shaped: nn.Parameter, name: str, checkpoint: TensorSource, virtual: bool
) -> nn.Parameter:
    if virtual and shaped.dim() >= 2:
        data = torch.zeros([1] * shaped.dim()).expand(shaped.shape)
    else:
        data = checkpoint.tensor(name)
    return nn.Parameter(data, requires_grad=False)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
