"""Traced graphs to .onnx files over one data file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from exporter.lower.onnx import vendor
from exporter.lower.onnx.data_file import DataFile, Place
from exporter.lower.onnx.experts import expand_experts
from exporter.lower.onnx.modules import Graph
from exporter.lower.onnx.names import rename
from exporter.lower.onnx.weights import Weight

OPSET = 23  # the first with RMSNormalization


@dataclass(frozen=True)
class Inputs:
    """The sample a graph is traced with, by input name, and which sizes are free."""

    sample: Mapping[str, Any]  # `past` is a dict of tensors
    dynamic_shapes: Mapping[str, Any]


def write_graph(
    graph: Graph, inputs: Inputs, constants: Mapping[str, int | str], data: DataFile, out: Path
) -> None:
    """Trace a graph and write it; weights go into `data`, each once."""
    names: list[str] = []
    for name, value in inputs.sample.items():
        names += value if isinstance(value, dict) else [name]
    with torch.no_grad(), vendor.quiet():
        traced = torch.export.export(
            graph,
            (),
            dict(inputs.sample),
            dynamic_shapes=dict(inputs.dynamic_shapes),
            strict=False,
        )
        model = vendor.to_model(traced, names, graph.output_names, OPSET)
        weights = detach_weights(model.graph, graph)
        vendor.optimize(model)
    rename(model)
    attach_weights(model.graph, weights, data)
    expand_experts(model.graph)
    model.graph.name, model.producer_name = out.stem, "gemma-export"
    model.metadata_props.update({name: str(value) for name, value in constants.items()})
    ir.save(model, out)
    vendor.check_file(out)


@dataclass(frozen=True)
class NamedWeight:
    """A tensor of the traced module, and the value that stands for it in the graph."""

    value: ir.Value
    tensor: Tensor
    owner: Weight | None  # None: the tensor has its numbers
    leaf: str  # its name in the owner


def detach_weights(graph: ir.Graph, module: Graph) -> list[NamedWeight]:
    """Turn every tensor of the module into an input, to hide it from the optimizer.

    The optimizer merges equal initializers and computes with them; virtual weights are all equal.
    """
    owners = {name: part for name, part in module.named_modules() if isinstance(part, Weight)}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    weights = []
    for name, tensor in tensors.items():
        value = graph.initializers.pop(name, None)
        if value is not None:
            value.const_value = None
            graph.inputs.append(value)
            path, _, leaf = name.rpartition(".")
            weights.append(NamedWeight(value, tensor, owners.get(path), leaf))
    return weights


def attach_weights(graph: ir.Graph, weights: Sequence[NamedWeight], data: DataFile) -> None:
    """Turn these inputs into initializers that refer to their places in the data file."""
    for weight in weights:
        value = weight.value
        graph.inputs.remove(value)
        if not value.uses():
            continue
        if weight.owner is None:
            assert value.name is not None
            array = weight.tensor.detach().numpy()
            place, shape = data.vector(value.name, array), array.shape
            value.const_value = _external(value, data, place, shape)
            graph.register_initializer(value)
        else:
            _attach_matrix(graph, weight, weight.owner, data)


def _attach_matrix(graph: ir.Graph, weight: NamedWeight, owner: Weight, data: DataFile) -> None:
    value, shape = weight.value, tuple(weight.tensor.shape)
    matrix, row_bytes = owner.matrix, owner.weight[0].numel() * owner.weight.element_size()
    values, scales = data.matrix(matrix, row_bytes)
    if weight.leaf == "scales" and shape[1] != matrix.num_groups:
        _repeat(graph, value, data, scales, (matrix.num_rows, matrix.num_groups, shape[1]))
        return
    place = values if weight.leaf == "weight" else scales
    value.const_value = _external(value, data, place, shape)
    graph.register_initializer(value)


def _repeat(
    graph: ir.Graph,
    value: ir.Value,
    data: DataFile,
    place: Place,
    sizes: tuple[int, int, int],
) -> None:
    """Store scales once per group, and repeat them for the blocks of a group in the graph.

    onnxruntime folds the two operators when it loads the graph, at any level of optimization but
    "none". There its MatMulNBits, which needs constant scales, is silently wrong.
    """
    num_rows, num_groups, num_blocks = sizes
    stored = ir.Value(name=f"{value.name}.stored", type=value.type)
    stored.const_value = _external(stored, data, place, (num_rows, num_groups, 1))
    stored.shape = ir.Shape((num_rows, num_groups, 1))
    shapes = [
        _integers(f"{value.name}.expanded", (num_rows, num_groups, num_blocks // num_groups)),
        _integers(f"{value.name}.shape", (num_rows, num_blocks)),
    ]
    for initializer in (stored, *shapes):
        graph.register_initializer(initializer)
    expand = ir.node("Expand", [stored, shapes[0]], name=f"{value.name}/Expand")
    reshape = ir.node("Reshape", [expand.outputs[0], shapes[1]], name=f"{value.name}/Reshape")
    expand.outputs[0].name = f"{value.name}.groups"
    users = list(value.uses())
    graph.insert_before(graph[0], [expand, reshape])
    for user, index in users:
        user.replace_input_with(index, reshape.outputs[0])
    reshape.outputs[0].name = value.name


def _integers(name: str, numbers: tuple[int, ...]) -> ir.Value:
    tensor = ir.tensor(np.array(numbers, np.int64), name=name)
    kind, shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(numbers)])
    return ir.Value(name=name, const_value=tensor, type=kind, shape=shape)


def _external(
    value: ir.Value, data: DataFile, place: Place, shape: tuple[int, ...]
) -> ir.ExternalTensor:
    assert value.name is not None
    assert value.dtype is not None
    return ir.ExternalTensor(
        data.path.name,
        place.offset,
        place.length,
        value.dtype,
        shape=ir.Shape(shape),
        name=value.name,
        base_dir=data.path.parent,
    )
