"""Modules whose weights are names and shapes while tracing; the data file gets the numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exporter.checkpoint.reader import DrafterCheckpoint, TargetCheckpoint
from exporter.graph import layers
from exporter.graph.experts import Choice, Experts
from exporter.graph.primitives import gelu_tanh
from exporter.graph.target import Table
from exporter.graph.weights import is_virtual, load_weights
from exporter.lower.onnx import operators
from exporter.quantize import WeightType

Checkpoint = TargetCheckpoint | DrafterCheckpoint


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix of a checkpoint and how the recipe stores it."""

    checkpoint: Checkpoint
    name: str
    weight_type: WeightType

    @property
    def num_rows(self) -> int:
        """A stack of matrices is one below the other."""
        return math.prod(self.checkpoint.shape(self.name)[:-1])

    @property
    def num_columns(self) -> int:
        return self.checkpoint.shape(self.name)[-1]

    @property
    def bits(self) -> int:
        return self.weight_type.bits

    @property
    def row_bytes(self) -> int:
        return self.num_columns * self.bits // 8

    @property
    def num_groups(self) -> int:
        """Scales of a row."""
        group_size = self.weight_type.group_size
        return self.num_columns // group_size if group_size else 1


class Weight(nn.Module):
    """The weight of one layer: a matrix of zeros without memory, or integers and their scales.

    A weight of integers has MatMulNBits' shapes in a linear layer and GatherBlockQuantized's in a
    table. The file stores scales once per group; loading repeats them.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, matrix: Matrix, *, gathered: bool) -> None:
        super().__init__()
        self.matrix = matrix
        self.block_size = _table_block(matrix) if gathered else operators.BLOCK_SIZE
        num_blocks = math.ceil(matrix.num_columns / self.block_size)
        block_bytes = self.block_size * matrix.bits // 8
        if not matrix.weight_type.is_integer:
            dtype = torch.float32 if matrix.bits == 32 else torch.float16
            weight = torch.zeros(1, 1, dtype=dtype).expand(matrix.num_rows, matrix.num_columns)
        elif gathered:
            weight = torch.zeros(1, 1, dtype=torch.uint8).expand(matrix.num_rows, matrix.row_bytes)
        else:
            weight = torch.zeros(1, 1, 1, dtype=torch.uint8)
            weight = weight.expand(matrix.num_rows, num_blocks, block_bytes)
        self.register_buffer("weight", weight)
        if matrix.weight_type.is_integer:
            scales = torch.zeros(1, 1).expand(matrix.num_rows, num_blocks)
            self.register_buffer("scales", scales)


class StoredLinear(Weight):
    """x [..., I] -> [..., O]; with integers x is rounded to int8, block by block."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix, gathered=False)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix
        if not matrix.weight_type.is_integer:
            # onnxruntime widens float16 once, when it loads the graph.
            return operators.linear(x, self.weight.to(torch.float32))
        return operators.matmul_nbits(x, self.weight, self.scales, matrix.bits, matrix.num_columns)


class StoredTable(Weight):
    """indices -> rows times a constant. Only the rows asked for become floating point."""

    def __init__(self, matrix: Matrix, scale: float) -> None:
        super().__init__(matrix, gathered=True)
        self._scale = scale

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.rows(token_ids) * self._scale

    def rows(self, indices: Tensor) -> Tensor:
        if not self.matrix.weight_type.is_integer:
            return nn.functional.embedding(indices, self.weight).to(torch.float32)
        return operators.gather_rows(
            self.weight, indices, self.scales, self.matrix.bits, self.block_size
        )


class StoredStack(Weight):
    """The same matrix of every expert, one below the other: rows x [R, I] in groups -> [R, O]."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix, gathered=False)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """counts [num_experts]: how many consecutive rows belong to each expert."""
        if not self.matrix.weight_type.is_integer:
            return operators.grouped_linear(x, counts, self.weight)
        stored, matrix = (self.weight, self.scales), self.matrix
        return operators.grouped_nbits(x, counts, stored, matrix.bits, matrix.num_columns)


class StoredExperts(nn.Module):
    """experts.Experts with tokens sorted by expert, so that each expert is read once."""

    def __init__(self, gate_up_proj: Matrix, down_proj: Matrix) -> None:
        super().__init__()
        self._num_experts = gate_up_proj.checkpoint.shape(gate_up_proj.name)[0]
        self.gate_up_proj = StoredStack(gate_up_proj)
        self.down_proj = StoredStack(down_proj)

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        chosen, shares = choice  # [T, k] each
        flat = chosen.reshape(-1)
        order = operators.stable_order(flat)
        counts = (flat.reshape(-1, 1) == torch.arange(self._num_experts)).sum(dim=0)
        rows = x[0][operators.floor_divide(order, chosen.shape[1])]  # [T * k, D]
        gate, up = self.gate_up_proj(rows, counts).chunk(2, dim=1)
        made = self.down_proj(gelu_tanh(gate) * up, counts)[operators.stable_order(order)]
        made = made.reshape(*chosen.shape, -1) * shares.unsqueeze(-1)  # [T, k, D]
        # One by one: onnxruntime's sum adds six or more in an order that depends on T.
        summed: Tensor = made[:, 0]
        for index in range(1, chosen.shape[1]):
            summed = summed + made[:, index]
        return summed.unsqueeze(0)


class RMSNorm(nn.Module):
    """One operator instead of seven."""

    weight: Tensor

    def __init__(self, norm: layers.RMSNorm) -> None:
        super().__init__()
        weight = torch.ones(norm.size) if norm.weight is None else norm.weight.data
        self.register_buffer("weight", weight)
        self._eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return operators.rms_norm(x, self.weight, self._eps)


class Loader:
    """Loads the modules of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, types: Mapping[str, WeightType]) -> None:
        self._checkpoint = checkpoint
        self._types = types
        self._matrices: dict[str, Matrix] = {}

    def load(self, module: nn.Module, gathered: frozenset[str] = frozenset()) -> None:
        """Replace the meta tensors of a module: vectors by numbers, matrices by names.

        Args:
            gathered: linear layers whose weight is used as a table.
        """
        load_weights(module, self._checkpoint, virtual=True)
        for path, part in list(module.named_modules()):
            if isinstance(part, Experts):
                stacks = (self._matrix(f"{path}.{name}") for name, _ in part.named_parameters())
                module.set_submodule(path, StoredExperts(*stacks))
        for name, parameter in list(module.named_parameters()):
            if is_virtual(parameter):
                path = name.removesuffix(".weight")
                layer = module.get_submodule(path)
                module.set_submodule(path, self._stored(layer, name, name in gathered))
        for path, part in list(module.named_modules()):
            if isinstance(part, layers.RMSNorm):
                module.set_submodule(path, RMSNorm(part))

    def _stored(self, layer: nn.Module, name: str, gathered: bool) -> Weight:
        matrix = self._matrix(name)
        if isinstance(layer, Table):
            return StoredTable(matrix, layer.scale)
        return StoredTable(matrix, 1.0) if gathered else StoredLinear(matrix)

    def _matrix(self, name: str) -> Matrix:
        if name not in self._matrices:
            self._matrices[name] = Matrix(self._checkpoint, name, self._types[name])
        return self._matrices[name]


def _table_block(matrix: Matrix) -> int:
    """The block size, a power of two: at least a row, or the largest that divides a group."""
    group_size = matrix.weight_type.group_size
    if group_size:
        return group_size & -group_size
    return max(16, 1 << (matrix.num_columns - 1).bit_length())
