"""Products with experts: one operator while tracing, one product per expert in the file.

onnxruntime 1.32's MoE and QMoE have no gated GELU on the CPU (geglu is CUDA only, and a third
matrix is not implemented). A product without rows costs next to nothing and reads no weight.
"""

import onnx_ir as ir

from exporter.lower.onnx.operators import DOMAIN, GROUPED


def expand_experts(graph: ir.Graph) -> None:
    """Replace every grouped product; its weights lie in the data file already."""
    for node in list(graph):
        if (node.domain, node.op_type) == (DOMAIN, GROUPED):
            _expand(graph, node)
    graph.opset_imports.pop(DOMAIN, None)


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    x, counts, weight, *scales = (value for value in node.inputs if value is not None)
    attributes = {name: value.as_int() for name, value in node.attributes.items()}
    num_experts = attributes.pop("num_experts")
    assert node.name is not None
    path = node.name.rpartition("/")[0]
    parts = ir.node("Split", [x, counts], {"axis": 0}, num_outputs=num_experts)
    parts.name = f"{path}/Split"
    slices = _slices(graph, weight, num_experts)
    nodes = [parts]
    if weight.dtype == ir.DataType.FLOAT16:  # onnxruntime widens it when it loads the graph
        to = {"to": ir.DataType.FLOAT}
        casts = [ir.node("Cast", [v], to, name=f"{path}.{i}/Cast") for i, v in enumerate(slices)]
        nodes, slices = [*nodes, *casts], [cast.outputs[0] for cast in casts]
    columns = [parts.outputs, slices]
    for value in scales:  # constants: onnxruntime splits them when it loads the graph
        split = ir.node("Split", [value], {"num_outputs": num_experts}, num_outputs=num_experts)
        split.name = f"{path}/Split_of_scales"
        nodes.append(split)
        columns.append(split.outputs)
    operator = "MatMulNBits" if scales else "FusedMatMul"
    products = [
        ir.node(operator, inputs, attributes, domain="com.microsoft", name=f"{path}.{i}/{operator}")
        for i, inputs in enumerate(zip(*columns, strict=True))
    ]
    joined = ir.node("Concat", [p.outputs[0] for p in products], {"axis": 0}, name=f"{path}/Concat")
    nodes += [*products, joined]
    for made in nodes:
        for index, output in enumerate(made.outputs):
            output.name = f"{made.name}:{index}" if index else made.name
    result = node.outputs[0]
    joined.outputs[0].type, joined.outputs[0].shape = result.type, result.shape
    graph.insert_before(node, nodes)
    result.replace_all_uses_with(joined.outputs[0])
    graph.remove(node, safe=True)


def _slices(graph: ir.Graph, stack: ir.Value, num_experts: int) -> list[ir.Value]:
    """An initializer for each expert's matrix in the stack, [num_experts * O, ...]."""
    whole = stack.const_value
    assert isinstance(whole, ir.ExternalTensor)
    assert whole.offset is not None
    assert whole.length is not None
    assert stack.name is not None
    graph.initializers.pop(stack.name)
    num_rows, *rest = whole.shape.numpy()
    length = whole.length // num_experts
    values = []
    for i in range(num_experts):
        name = f"{stack.name.removesuffix('.weight')}.{i}.weight"
        shape = ir.Shape((num_rows // num_experts, *rest))
        tensor = ir.ExternalTensor(
            whole.location,
            whole.offset + i * length,
            length,
            whole.dtype,
            shape=shape,
            name=name,
            base_dir=whole.base_dir,
        )
        values.append(ir.Value(name=name, const_value=tensor, type=stack.type, shape=shape))
        graph.register_initializer(values[-1])
    return values
