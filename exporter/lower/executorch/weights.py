"""Load the weights of modules, quantized as the recipe says."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from exporter.checkpoint.reader import DrafterCheckpoint, TargetCheckpoint
from exporter.graph.drafter import Drafter
from exporter.graph.layers import Linear
from exporter.graph.target import Table
from exporter.graph.weights import is_virtual, load_weights
from exporter.quantize import WeightType, quantize
from runtime_py.formats.weight_names import PREFIX_BYTES, fingerprint

# XNNPACK stores 4-bit values as 0 to 15, 8 more than the value, in both halves of a byte.
OFFSET_4_BITS = 0x88
CHUNK_ROWS = (
    1024  # rows of a matrix rearranged at once, which bounds the memory of the steps between
)

Checkpoint = TargetCheckpoint | DrafterCheckpoint


@dataclass(frozen=True)
class Integers:
    """A matrix as the recipe stores it."""

    values: Tensor  # [O, I] int8, or [O, I / 2] uint8: two values a byte, the first in its low half
    scales: Tensor  # [O] or, for groups, [O, I / group size], float32


class QuantizedLinear(nn.Module):
    """x [..., I] -> [..., O]; the input is quantized to int8 per token at run time."""

    def __init__(self, integers: Integers) -> None:
        super().__init__()
        packed = integers.values.dtype == torch.uint8
        self._range = (-8, 7) if packed else (-128, 127)
        self.values = _constant(_unpacked(integers.values) if packed else integers.values)
        self.scales = _constant(integers.scales)
        self.zero_points = _constant(torch.zeros_like(integers.scales, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 1:  # XNNPACK's partitioner takes inputs of two dimensions or more
            return self(x.reshape(1, -1)).reshape(-1)  # type: ignore[no-any-return]
        # XNNPACK recognises exactly this chain as one dynamically quantized linear; with one scale
        # per row also with 4-bit values (qc4w), where torchao's spelling becomes one group per row
        # with a bfloat16 scale (QuantParams in ExecuTorch's quant_params.py).
        operators = torch.ops.quantized_decomposed
        scales, zero_points = operators.choose_qparams_per_token_asymmetric(x, torch.int8)
        token = (scales, zero_points, -128, 127, torch.int8)
        quantized_x = operators.quantize_per_token(x, *token)
        rounded_x = operators.dequantize_per_token(quantized_x, *token, torch.float32)
        return nn.functional.linear(rounded_x, self._weight())

    def _weight(self) -> Tensor:
        operators = torch.ops.quantized_decomposed
        stored = (self.values, self.scales, self.zero_points)
        weight: Tensor
        if self.scales.dim() == 1:
            weight = operators.dequantize_per_channel(*stored, 0, *self._range, torch.int8)
        else:
            group_size = self.values.shape[1] // self.scales.shape[1]
            weight = operators.dequantize_per_channel_group(
                *stored, *self._range, torch.int8, group_size, torch.float32
            )
        return weight


class QuantizedTable(nn.Module):
    """indices -> rows times a constant. Only the rows asked for become floating point.

    Args:
        integers: the table.
        scale: the constant.
        tied: store the same bytes as XNNPACK does, so that the file holds one copy
            (`one_copy.py`).
    """

    def __init__(self, integers: Integers, scale: float, tied: bool = False) -> None:
        super().__init__()
        packed = integers.values.dtype == torch.uint8
        # The operator wants 8 added to both values of a byte and the first one in the high half.
        # XNNPACK has it in the low half: the operator finds each pair of columns swapped.
        self._swapped = packed and tied
        values = integers.values
        if packed:
            values = values ^ OFFSET_4_BITS if tied else _swapped(values)
        self.values, self.scales = _constant(values), _constant(integers.scales)
        self._scale = scale

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.rows(token_ids) * self._scale

    def rows(self, indices: Tensor) -> Tensor:
        operators = torch.ops.quantized_decomposed
        four_bits = self.values.dtype == torch.uint8
        gather = operators.embedding_4bit.dtype if four_bits else operators.embedding_byte.dtype
        low, high = (-8, 7) if four_bits else (-128, 127)
        positions = indices.to(torch.int64)  # the only type the operator takes
        rows: Tensor = gather(
            self.values, self.scales, None, low, high, positions, dtype=torch.float32
        )
        if not self._swapped:
            return rows
        pairs = torch.unflatten(rows, -1, (-1, 2))
        # Not flip, whose kernel takes ten times as long.
        return torch.stack((pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)


class Loader:
    """Loads the modules of one checkpoint; quantizes a matrix that two modules share once.

    Attributes:
        names: fingerprint of a matrix's bytes in the file -> its name, behind `prefix`.
    """

    def __init__(
        self, checkpoint: Checkpoint, types: Mapping[str, WeightType], prefix: str = ""
    ) -> None:
        self._checkpoint = checkpoint
        self._types = types
        self._prefix = prefix
        self.names: dict[str, str] = {}
        self._integers: dict[str, Integers] = {}
        self._parameters: dict[str, nn.Parameter] = {}

    def load(self, module: nn.Module) -> None:
        """Replace every weight of a module that was built on the meta device.

        A module of integers replaces a quantized layer; no matrix is float32 as a whole.
        """
        load_weights(module, self._checkpoint, virtual=True)
        for name, parameter in list(module.named_parameters()):
            if is_virtual(parameter):
                self._replace(module, name)

    def _replace(self, module: nn.Module, name: str) -> None:
        path = name.removesuffix(".weight")
        layer = module.get_submodule(path)
        if self._types[name].bits == 32:
            layer.weight = self._parameter(name)
            self._remember(name, layer.weight)
            return
        integers = self._quantized(name)
        if isinstance(layer, Table) or _is_gathered(module, name):
            tied = isinstance(layer, Table) and name == self._checkpoint.spec.head_name
            table = QuantizedTable(integers, layer.scale if isinstance(layer, Table) else 1.0, tied)
            module.set_submodule(path, table)
            self._remember(name, table.values)
        else:
            assert isinstance(layer, Linear)
            module.set_submodule(path, QuantizedLinear(integers))
            packed = integers.values.dtype == torch.uint8
            self._remember(name, integers.values, OFFSET_4_BITS if packed else 0)

    def _remember(self, name: str, stored: Tensor, offset: int = 0) -> None:
        start = stored.detach().numpy().reshape(-1).view(np.uint8)[:PREFIX_BYTES]
        self.names[fingerprint((start ^ np.uint8(offset)).tobytes())] = self._prefix + name

    def _parameter(self, name: str) -> nn.Parameter:
        if name not in self._parameters:
            tensor = self._checkpoint.tensor(name)
            self._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        return self._parameters[name]

    def _quantized(self, name: str) -> Integers:
        if name not in self._integers:
            found = quantized(self._checkpoint, name, self._types[name])
            if name != self._checkpoint.spec.head_name:  # no other is asked for twice
                return found
            self._integers[name] = found
        return self._integers[name]


def quantized(checkpoint: Checkpoint, name: str, weight_type: WeightType) -> Integers:
    """Quantize a matrix, a chunk of rows at a time."""
    num_rows, num_columns = checkpoint.shape(name)
    packed = weight_type.bits == 4
    values = np.empty(
        (num_rows, num_columns // 2 if packed else num_columns), np.uint8 if packed else np.int8
    )
    groups = (num_columns // weight_type.group_size,) if weight_type.group_size else ()
    scales = np.empty((num_rows, *groups), np.float32)
    done = 0
    for chunk in quantize(checkpoint, name, weight_type):
        stop = done + len(chunk.scales)
        scales[done:stop] = chunk.scales
        values[done:stop] = np.frombuffer(chunk.data, values.dtype).reshape(stop - done, -1)
        done = stop
    return Integers(torch.from_numpy(values), torch.from_numpy(scales))


def _constant(tensor: Tensor) -> nn.Parameter:
    # Not a buffer: a method keeps every buffer of its module in the program, used or not, and the
    # methods hold the whole target (remove_unused_parameters_pass.py of ExecuTorch 1.5.1).
    return nn.Parameter(tensor, requires_grad=False)


def _is_gathered(module: nn.Module, name: str) -> bool:
    """Whether a drafter's head is used as a table: its centroids choose rows."""
    if not isinstance(module, Drafter) or module.spec.centroids is None:
        return False
    return name == module.spec.head_name


def _unpacked(packed: Tensor) -> Tensor:
    values = torch.empty(len(packed), 2 * packed.shape[1], dtype=torch.int8)
    for rows, found in zip(
        torch.split(packed, CHUNK_ROWS), torch.split(values, CHUNK_ROWS), strict=True
    ):
        halves = torch.stack((rows & 15, rows >> 4), dim=-1).reshape(len(rows), -1)
        found.copy_((halves ^ 8).to(torch.int8) - 8)  # two's complement of four bits
    return values


def _swapped(packed: Tensor) -> Tensor:
    values = torch.empty_like(packed)
    for rows, found in zip(
        torch.split(packed, CHUNK_ROWS), torch.split(values, CHUNK_ROWS), strict=True
    ):
        found.copy_((((rows & 15) ^ 8) << 4) | ((rows >> 4) ^ 8))
    return values
