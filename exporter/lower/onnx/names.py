"""Readable names in a graph: module paths instead of the exporter's numbers."""

import re
from collections import Counter

import onnx_ir as ir

from exporter.lower.onnx.vendor import module_of

# Input name -> its free dimension and what that is called. Past rows have another.
_TOKENS = {"token_ids": 1, "hidden": 1}
_ROWS_DIM = 2


def rename(model: ir.Model) -> None:
    """Name nodes and tensors; drop the exporter's metadata, which has paths of this machine.

    Weights have their names already, and are not initializers yet.
    """
    graph = model.graph
    sizes = _sizes(graph)
    public = {value.name for value in (*graph.inputs, *graph.outputs)}
    used: Counter[str] = Counter()
    for node in graph:
        node.name = _unique(_path(node), used)
        node.metadata_props.clear()
        for index, value in enumerate(node.outputs):
            value.metadata_props.clear()
            _rename_sizes(value, sizes)
            if value.name not in public:
                value.name = f"{node.name}:{index}" if index else node.name
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        _rename_sizes(value, sizes)
    for index, value in enumerate(list(graph.initializers.values())):
        value.name = f"constant_{index}"
    model.metadata_props.clear()
    graph.metadata_props.clear()


def _path(node: ir.Node) -> str:
    """target/layers.0/self_attn/q_proj/MatMulNBits"""
    return "/".join((*re.split(r"\.(?!\d)", module_of(node)), node.op_type)).lstrip("/")


def _unique(name: str, used: Counter[str]) -> str:
    used[name] += 1
    return name if used[name] == 1 else f"{name}_{used[name]}"


def _sizes(graph: ir.Graph) -> dict[str, str]:
    """The exporter's name of a free size -> ours."""
    sizes = {}
    for value in graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        if value.name.startswith("past_"):
            sizes[str(value.shape[_ROWS_DIM])] = "max_rows"
        elif value.name in _TOKENS:
            sizes[str(value.shape[_TOKENS[value.name]])] = "num_tokens"
    return {name: ours for name, ours in sizes.items() if not name.isdecimal()}


def _rename_sizes(value: ir.Value, sizes: dict[str, str]) -> None:
    if value.shape is None:
        return
    renamed = [
        size
        if isinstance(size, int)
        else re.sub(r"\w+", lambda m: sizes.get(m[0], m[0]), str(size))
        for size in value.shape
    ]
    value.shape = ir.Shape(renamed)
