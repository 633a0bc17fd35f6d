"""Put tensors and operators into a graph that the converter made."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from exporter.lower.litert.vendor import schema


class Rewriting:
    """One subgraph of a ModelT whose list of operators is built anew.

    Attributes:
        operators: the new list; finish() puts it into the subgraph.
    """

    def __init__(self, model: Any, subgraph: Any) -> None:
        self.schema = schema()
        self.types = self.schema.TensorType
        self.codes = self.schema.BuiltinOperator
        self.model = model
        self.subgraph = subgraph
        self.operators: list[Any] = []

    def finish(self) -> None:
        self.subgraph.operators = self.operators

    def tensor(self, index: int) -> Any:
        return self.subgraph.tensors[index]

    def code_of(self, operator: Any) -> int:
        return int(self.model.operatorCodes[operator.opcodeIndex].builtinCode)

    def like(self, index: int, suffix: bytes, dtype: int) -> int:
        """Add a tensor of the same shape and of type `dtype`, without data; return its number."""
        pattern = self.tensor(index)
        made = self.schema.TensorT()
        made.name, made.shape, made.type = pattern.name + suffix, pattern.shape, dtype
        made.shapeSignature, made.hasRank = pattern.shapeSignature, pattern.hasRank
        self.subgraph.tensors.append(made)
        return len(self.subgraph.tensors) - 1

    def make_int8(self, index: int, scale: float) -> None:
        """Make a tensor int8 with one scale for all of it."""
        tensor = self.tensor(index)
        tensor.type = self.types.INT8
        tensor.quantization = self.schema.QuantizationParametersT()
        tensor.quantization.scale = np.array([scale], np.float32)
        tensor.quantization.zeroPoint = np.zeros(1, np.int64)

    def append(
        self, code: int, version: int, inputs: Sequence[int], out: int, options: Any = None
    ) -> None:
        """Append an operator of `version`, or of a later one that the model uses already."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._operator_code(code, version)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([out], np.int32)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self.operators.append(operator)

    def _operator_code(self, code: int, version: int) -> int:
        """The number of the model's operator code, which is added if it is missing."""
        for number, known in enumerate(self.model.operatorCodes):
            if known.builtinCode == code:
                known.version = max(known.version, version)
                return number
        added = self.schema.OperatorCodeT()
        added.builtinCode = added.deprecatedBuiltinCode = code
        added.version = version
        self.model.operatorCodes.append(added)
        return len(self.model.operatorCodes) - 1
