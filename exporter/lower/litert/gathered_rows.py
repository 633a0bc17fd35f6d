"""Gather rows of an int8 table as integers, and apply their scales behind the product.

    EMBEDDING_LOOKUP -> FULLY_CONNECTED      becomes
    GATHER of rows -> DEQUANTIZE by 1 -> FULLY_CONNECTED -> MUL by a GATHER of their scales

A centroid head looks up thousands of rows in every draft step, and EMBEDDING_LOOKUP converts them
to float32 one number at a time (EvalHybrid in tflite/kernels/embedding_lookup.cc).
"""

from typing import Any

import numpy as np

from exporter.lower.litert.rewriting import Rewriting

_VERSION = 2  # of DEQUANTIZE, GATHER and MUL: the first that takes int8


def gather_integers(model: Any) -> dict[bytes, Any]:
    """Rewrite, in place, every lookup of several rows that only FULLY_CONNECTED reads.

    Args:
        model: a ModelT whose weights have their types.

    Returns:
        For each rewritten table, by name: the buffer for its float32 scales; the table itself has
        none.
    """
    scale_buffers: dict[bytes, Any] = {}
    for subgraph in model.subgraphs:
        graph = Rewriting(model, subgraph)
        lookups = [lookup for lookup in subgraph.operators if _is_slow(graph, lookup)]
        if lookups:
            _rewrite(graph, lookups, scale_buffers)
    return scale_buffers


def _is_slow(graph: Rewriting, operator: Any) -> bool:
    if graph.code_of(operator) != graph.codes.EMBEDDING_LOOKUP:
        return False
    token_ids, table = (int(index) for index in operator.inputs)
    rows = int(operator.outputs[0])
    return (
        graph.tensor(table).type == graph.types.INT8
        and np.prod(graph.tensor(token_ids).shape) > 1
        and len(_readers(graph, table)) == 1
        and rows not in (int(index) for index in graph.subgraph.outputs)
        and all(
            graph.code_of(reader) == graph.codes.FULLY_CONNECTED and int(reader.inputs[1]) == rows
            for reader in _readers(graph, rows)
        )
    )


def _readers(graph: Rewriting, index: int) -> list[Any]:
    return [o for o in graph.subgraph.operators if index in (int(i) for i in o.inputs)]


def _rewrite(graph: Rewriting, lookups: list[Any], scale_buffers: dict[bytes, Any]) -> None:
    codes, float32, schema = graph.codes, graph.types.FLOAT32, graph.schema
    scales: dict[int, int] = {}  # tensor of rows -> of their scales
    for operator in graph.subgraph.operators:
        if operator in lookups:
            token_ids, table = (int(index) for index in operator.inputs)
            rows = int(operator.outputs[0])
            integers = graph.like(rows, b".int8", graph.types.INT8)
            graph.make_int8(integers, 1.0)
            graph.make_int8(table, 1.0)
            scales[rows] = graph.like(token_ids, b".scales", float32)
            by_row = _scales_by_row(graph, table, scale_buffers)
            for source, found in ((table, integers), (by_row, scales[rows])):
                options = schema.GatherOptionsT()
                graph.append(codes.GATHER, _VERSION, [source, token_ids], found, options)
            graph.append(codes.DEQUANTIZE, _VERSION, [integers], rows)
        elif graph.code_of(operator) == codes.FULLY_CONNECTED and int(operator.inputs[1]) in scales:
            scaled = int(operator.outputs[0])
            product = graph.like(scaled, b".product", float32)
            operator.outputs = np.array([product], np.int32)
            graph.operators.append(operator)
            factors = [product, scales[int(operator.inputs[1])]]
            graph.append(codes.MUL, _VERSION, factors, scaled, schema.MulOptionsT())
        else:
            graph.operators.append(operator)
    graph.finish()


def _scales_by_row(graph: Rewriting, table: int, scale_buffers: dict[bytes, Any]) -> int:
    """A tensor [V] over the table's buffer of scales, which all signatures share."""
    name, num_rows = graph.tensor(table).name, int(graph.tensor(table).shape[0])
    if name not in scale_buffers:
        scale_buffers[name] = graph.schema.BufferT()
        scale_buffers[name].data = np.zeros(num_rows * np.float32().nbytes, np.uint8)
        graph.model.buffers.append(scale_buffers[name])
    made = graph.like(table, b".scales", graph.types.FLOAT32)
    graph.tensor(made).shape = np.array([num_rows], np.int32)
    graph.tensor(made).shapeSignature = None
    graph.tensor(made).buffer = graph.model.buffers.index(scale_buffers[name])
    return made
