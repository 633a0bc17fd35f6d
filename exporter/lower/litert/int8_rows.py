"""int8 KV rows: float32 graphs in which what is written is rounded, and what is read is widened.

    rows -> QUANTIZE -> DYNAMIC_UPDATE_SLICE -> GATHER of the window's rows -> DEQUANTIZE

Layers without a window widen all their rows, once in each call for all layers that read them. The
tensors of the signatures carry their scale, as those of Google's own bundles do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import ExportError
from exporter.lower.litert.float16 import DEQUANTIZE_VERSION
from exporter.lower.litert.kv_cache import row_names
from exporter.lower.litert.rewriting import Rewriting
from exporter.lower.litert.vendor import model_bytes, read_model
from exporter.quantize import KvRange


def store_int8_rows(skeleton: Path, ranges: Mapping[int, KvRange]) -> None:
    """Give the KV tensors of all signatures of a .tflite that type, in place.

    Args:
        skeleton: a file made by `convert`.
        ranges: of the rows, by target layer.

    Raises:
        ExportError: if rows are handed on by an operator that is not known here.
    """
    model = read_model(skeleton)
    scales = {
        name: scale
        for layer, found in ranges.items()
        for name, scale in zip(row_names(layer), (found.key_scale, found.value_scale), strict=True)
    }
    for definition in model.signatureDefs:
        subgraph = model.subgraphs[definition.subgraphIndex]
        inputs, outputs = (
            {
                entry.tensorIndex: scales[name]
                for entry in entries
                if (name := _name(entry)) in scales
            }
            for entries in (definition.inputs, definition.outputs)
        )
        made = _Rows(model, subgraph, inputs).store()
        if not set(outputs) <= made:
            raise ExportError(
                "lowering to LiteRT: the converter put an operator between a KV tensor and the "
                "rows written into it; export with --kv float32"
            )
    skeleton.write_bytes(model_bytes(model))


def _name(entry: Any) -> str:
    return str(entry.name.decode())


class _Rows(Rewriting):
    """One subgraph; `scales` are those of its KV inputs, by number of tensor."""

    def __init__(self, model: Any, subgraph: Any, scales: Mapping[int, float]) -> None:
        super().__init__(model, subgraph)
        self._scales = dict(scales)
        self._widened: dict[int, int] = {}  # int8 tensor -> the same in float32

    def store(self) -> set[int]:
        """Returns the numbers of the tensors that are int8 now."""
        for index, scale in self._scales.items():
            self.make_int8(index, scale)
        for operator in self.subgraph.operators:
            operator.inputs = np.array(operator.inputs, np.int32)
            kind = self.code_of(operator)
            passes_on = kind in (self.codes.DYNAMIC_UPDATE_SLICE, self.codes.GATHER)
            if passes_on and int(operator.inputs[0]) in self._scales:
                scale, made = self._scales[int(operator.inputs[0])], int(operator.outputs[0])
                if kind == self.codes.DYNAMIC_UPDATE_SLICE:
                    operator.inputs[1] = self._rounded(int(operator.inputs[1]), scale)
                self._scales[made] = scale
                self.make_int8(made, scale)
            else:
                operator.inputs = np.array([self._float(int(i)) for i in operator.inputs], np.int32)
            self.operators.append(operator)
        self.finish()
        return set(self._scales)

    def _rounded(self, rows: int, scale: float) -> int:
        made = self.like(rows, b".int8", self.types.INT8)
        self.make_int8(made, scale)
        self.append(self.codes.QUANTIZE, 1, [rows], made)
        return made

    def _float(self, index: int) -> int:
        """A tensor that an operator of floating point reads."""
        if index not in self._scales:
            return index
        if index not in self._widened:
            made = self._widened[index] = self.like(index, b".float32", self.types.FLOAT32)
            self.append(self.codes.DEQUANTIZE, DEQUANTIZE_VERSION, [index], made)
        return self._widened[index]
