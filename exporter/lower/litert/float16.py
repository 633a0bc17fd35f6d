"""Give LiteRT's kernels float32 where a weight is stored as float16.

FULLY_CONNECTED reads no float16: a DEQUANTIZE stands before it, which XNNPACK runs once, when it
packs the weights. EMBEDDING_LOOKUP does: only the rows that it found are made float32.
"""

from typing import Any

import numpy as np

DEQUANTIZE_VERSION = 3  # the first that takes float16


def widen(model: Any) -> None:
    """Put DEQUANTIZE between float16 weights and what reads them, in every subgraph."""
    for subgraph in model.subgraphs:
        _Widening(model, subgraph).run()


class _Widening:
    def __init__(self, model: Any, subgraph: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._model = model
        self._subgraph = subgraph

    def run(self) -> None:
        float16 = self._schema.TensorType.FLOAT16
        lookup = self._schema.BuiltinOperator.EMBEDDING_LOOKUP
        stored = {i for i, t in enumerate(self._subgraph.tensors) if t.type == float16}
        widened: dict[int, int] = {}
        operators = []
        for operator in self._subgraph.operators:
            weight = next((int(i) for i in operator.inputs if int(i) in stored), None)
            code = self._model.operatorCodes[operator.opcodeIndex].builtinCode
            if weight is None:
                operators.append(operator)
            elif code == lookup:
                operators += [operator, self._widen_rows(operator)]
            else:
                if weight not in widened:
                    widened[weight] = self._like(weight, self._schema.TensorType.FLOAT32)
                    operators.append(self._dequantize(weight, widened[weight]))
                inputs = [widened.get(int(i), int(i)) for i in operator.inputs]
                operator.inputs = np.array(inputs, np.int32)
                operators.append(operator)
        self._subgraph.operators = operators

    def _widen_rows(self, lookup: Any) -> Any:
        (rows,) = (int(index) for index in lookup.outputs)
        found = self._like(rows, self._schema.TensorType.FLOAT16)
        lookup.outputs = np.array([found], np.int32)
        return self._dequantize(found, rows)

    def _like(self, index: int, dtype: int) -> int:
        """A new tensor of that type and of the same shape, without numbers."""
        pattern, tensor = self._subgraph.tensors[index], self._schema.TensorT()
        tensor.name, tensor.shape, tensor.type = pattern.name + b".widened", pattern.shape, dtype
        tensor.shapeSignature, tensor.hasRank = pattern.shapeSignature, pattern.hasRank
        self._subgraph.tensors.append(tensor)
        return len(self._subgraph.tensors) - 1

    def _dequantize(self, index: int, out: int) -> Any:
        operator = self._schema.OperatorT()
        code = self._schema.BuiltinOperator.DEQUANTIZE
        operator.opcodeIndex = operator_code(self._model, code, DEQUANTIZE_VERSION)
        operator.inputs = np.array([index], np.int32)
        operator.outputs = np.array([out], np.int32)
        return operator


def operator_code(model: Any, code: int, version: int) -> int:
    """The number of an operator among those of a model, which it is added to if need be."""
    from ai_edge_litert import schema_py_generated as schema

    for number, known in enumerate(model.operatorCodes):
        if known.builtinCode == code:
            return number
    added = schema.OperatorCodeT()
    added.builtinCode = added.deprecatedBuiltinCode = code
    added.version = version
    model.operatorCodes.append(added)
    return len(model.operatorCodes) - 1
