"""Let transformers' modules, built without weights, read them while they run.

A linear reads a few of its rows at a time and an embedding only the rows asked for: at most
LENT_BYTES of the checkpoint are in memory at once, whatever its size. Norms and scalars stay in
memory, and so does all of a small model.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from exporter.errors import ExportError

LENT_BYTES = 2 << 20  # float32 bytes of a linear's rows; they fit a processor's cache
TOKEN_ORDERING = "token_ordering"  # of a centroid head: integers


class WeightSource(Protocol):
    """What `lend` needs of a checkpoint."""

    def shape(self, name: str, /) -> tuple[int, ...]: ...
    def rows(self, name: str, start: int, stop: int, /) -> Tensor: ...
    def tensor(self, name: str, /) -> Tensor: ...
    def integers(self, name: str, /) -> Tensor: ...


class Kept:
    """A source that reads every tensor once and keeps it."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._read: dict[str, Tensor] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self.tensor(name)[start:stop]

    def tensor(self, name: str) -> Tensor:
        if name not in self._read:
            self._read[name] = self._source.tensor(name)
        return self._read[name]

    def integers(self, name: str) -> Tensor:
        return self._source.integers(name)


class Rows(nn.Module):
    """A scaled embedding of transformers that reads only the rows asked for."""

    def __init__(self, embedding: Any, name: str, source: WeightSource) -> None:
        super().__init__()
        _compare(name, embedding.weight, source)
        self._kind: Any = type(embedding)
        self._scale = embedding.scalar_embed_scale
        self._name, self._source = name, source

    def forward(self, token_ids: Tensor) -> Tensor:
        needed, places = torch.unique(token_ids, return_inverse=True)
        table = torch.cat([self._source.rows(self._name, i, i + 1) for i in needed.tolist()])
        some = self._kind(*table.shape, padding_idx=None, embed_scale=self._scale)
        some.weight = _fixed(table)
        rows: Tensor = some(places)
        return rows


class LentLinear(nn.Module):
    """A linear without bias that reads a few of its rows at a time."""

    def __init__(self, linear: nn.Linear, name: str, source: WeightSource) -> None:
        super().__init__()
        _compare(name, linear.weight, source)
        self._name, self._source = name, source

    def forward(self, inputs: Tensor) -> Tensor:
        num_rows, width = self._source.shape(self._name)
        outputs = inputs.new_empty((*inputs.shape[:-1], num_rows))
        step = max(1, LENT_BYTES // (4 * width))
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            rows = self._source.rows(self._name, start, stop)
            outputs[..., start:stop] = nn.functional.linear(inputs, rows)
        return outputs


def lend(module: nn.Module, prefix: str, source: WeightSource) -> None:
    """Make a module on the meta device, and all in it, read the source's tensors named `prefix`…

    Raises:
        ExportError: if the source lacks a tensor, or has one of another shape.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) and child.bias is None:
            setattr(module, name, LentLinear(child, f"{prefix}{name}.weight", source))
        elif not isinstance(child, (LentLinear, Rows)):
            lend(child, f"{prefix}{name}.", source)
    own = _own(module)
    if any(tensor.dim() > 2 for tensor in own.values()):
        _lend_for_a_call(module, prefix, own, source)
    else:
        _give(module, prefix, own, source)


def give(module: nn.Module, prefix: str, source: WeightSource) -> None:
    """Load them once and keep them."""
    for name, child in module.named_children():
        give(child, f"{prefix}{name}.", source)
    _give(module, prefix, _own(module), source)


def _own(module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors on the meta device; computed ones are not in its state."""
    state = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if tensor.is_meta and "." not in name}


def _lend_for_a_call(
    module: nn.Module, prefix: str, tensors: dict[str, Tensor], source: WeightSource
) -> None:
    """Experts: load all of a layer's before each call, and drop them after it."""
    for name, tensor in tensors.items():
        _compare(prefix + name, tensor, source)

    def begin(_module: nn.Module, _inputs: object) -> None:
        _give(module, prefix, tensors, source)

    def end(_module: nn.Module, _inputs: object, _output: object) -> None:
        for name, tensor in tensors.items():
            setattr(module, name, tensor)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


def _give(module: nn.Module, prefix: str, tensors: dict[str, Tensor], source: WeightSource) -> None:
    for name, tensor in tensors.items():
        _compare(prefix + name, tensor, source)
        integer = name == TOKEN_ORDERING
        real = source.integers(prefix + name) if integer else source.tensor(prefix + name)
        setattr(module, name, _fixed(real) if isinstance(tensor, nn.Parameter) else real)


def _compare(name: str, tensor: Tensor, source: WeightSource) -> None:
    """Refuse a checkpoint that lacks a tensor of transformers' model."""
    try:
        found = list(source.shape(name))
    except KeyError:
        raise ExportError(f"it needs {name}, which the export does not read") from None
    if found != list(tensor.shape):
        raise ExportError(f"it needs {name} of shape {list(tensor.shape)}, there is {found}")


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
