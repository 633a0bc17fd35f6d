"""Give LiteRT's kernels float32 where a weight is stored as float16.

FULLY_CONNECTED does not read float16: it gets a DEQUANTIZE, which XNNPACK runs once, when it packs
the weights. EMBEDDING_LOOKUP does read it, so only the rows found become float32.
"""

from typing import Any

import numpy as np

from exporter.lower.litert.rewriting import Rewriting

DEQUANTIZE_VERSION = 3  # the first that takes float16


def widen(model: Any) -> None:
    """Put a DEQUANTIZE between each float16 weight and its readers, in every subgraph."""
    for subgraph in model.subgraphs:
        _widen(Rewriting(model, subgraph))


def _widen(graph: Rewriting) -> None:
    float16, float32 = graph.types.FLOAT16, graph.types.FLOAT32
    dequantize = graph.codes.DEQUANTIZE
    stored = {i for i, tensor in enumerate(graph.subgraph.tensors) if tensor.type == float16}
    widened: dict[int, int] = {}
    for operator in graph.subgraph.operators:
        weight = next((int(i) for i in operator.inputs if int(i) in stored), None)
        if weight is None:
            graph.operators.append(operator)
        elif graph.code_of(operator) == graph.codes.EMBEDDING_LOOKUP:
            (rows,) = (int(index) for index in operator.outputs)
            found = graph.like(rows, b".float16", float16)
            operator.outputs = np.array([found], np.int32)
            graph.operators.append(operator)
            graph.append(dequantize, DEQUANTIZE_VERSION, [found], rows)
        else:
            if weight not in widened:
                widened[weight] = graph.like(weight, b".float32", float32)
                graph.append(dequantize, DEQUANTIZE_VERSION, [weight], widened[weight])
            inputs = [widened.get(int(i), int(i)) for i in operator.inputs]
            operator.inputs = np.array(inputs, np.int32)
            graph.operators.append(operator)
    graph.finish()
