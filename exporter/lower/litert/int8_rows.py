"""int8 KV rows: round what float32 graphs write to the cache, and widen what they read.

    rows -> QUANTIZE -> DYNAMIC_UPDATE_SLICE -> GATHER of the window's rows -> DEQUANTIZE

A layer without a window widens all rows, once per call for all layers that read them. The
signatures' tensors carry the scale, as in Google's own bundles.
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
    """Make the KV tensors of all signatures of a .tflite int8, in place.

    Args:
        skeleton: a file made by `convert`.
        ranges: of the rows, by target layer.

    Raises:
        ExportError: if an unknown operator stands between the rows and the KV tensors.
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
        """Rewrite the subgraph; return the numbers of the tensors that are int8 now."""
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
        """The float32 tensor of the same rows, for other operators to read."""
        if index not in self._scales:
            return index
        if index not in self._widened:
            made = self._widened[index] = self.like(index, b".float32", self.types.FLOAT32)
            self.append(self.codes.DEQUANTIZE, DEQUANTIZE_VERSION, [index], made)
        return self._widened[index]
