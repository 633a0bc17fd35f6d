"""Which files onnxruntime opens for a model: the graphs, and the files with their weights.

Field numbers are those of onnx.proto. A field that should occur once may occur several times, and
readers differ in which one they use; here all of them count.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from runtime_py.errors import RunError
from runtime_py.formats.mapping import mapped
from runtime_py.formats.protobuf import Message, ProtobufError

_GRAPH, _FUNCTIONS = 7, 25  # of a model
_INITIALIZERS, _SPARSE_INITIALIZERS, _NODES = 5, 15, 1  # of a graph
_FUNCTION_NODES = 7
_ATTRIBUTES, _FUNCTION_ATTRIBUTES = 5, 11
_TENSORS, _GRAPHS, _SPARSE_TENSORS = (5, 10), (6, 11), (22, 23)  # of an attribute: one, several
_SPARSE_PARTS = (1, 2)
_EXTERNAL_DATA = 13
_MAX_DEPTH = 32  # of graphs in graphs


FILL, FINISH, DRAFT = "fill", "finish", "draft"  # model.fill.onnx and so on


def sibling(path: Path, graph: str) -> Path:
    """model.fill.onnx -> model.finish.onnx"""
    return path.with_name(path.name.replace(f".{FILL}.", f".{graph}."))


def onnx_files(fill: Path) -> set[str]:
    """The names of the files, all in one folder.

    Raises:
        RunError: if a file is unreadable, is no .onnx, or names a file in another folder.
    """
    draft = sibling(fill, DRAFT)
    graphs = [fill, sibling(fill, FINISH), *([draft] if draft.exists() else [])]
    found = {graph.name for graph in graphs}
    for graph in graphs:
        for name in _weight_files(graph):
            if PurePosixPath(name).name != name:
                raise RunError(f"{graph}: weights in {name!r}, needed a file beside it; refuse it")
            found.add(name)
    return found


def _weight_files(path: Path) -> set[str]:
    """The external weight files, as the tensors name them."""
    try:
        with mapped(path) as view:
            return _of_model(view)
    except ProtobufError as error:
        raise RunError(f"{path}: no .onnx file ({error}); copy the file again") from None


def _of_model(view: memoryview) -> set[str]:
    model = Message(view)
    found: set[str] = set()
    for graph in model.messages(_GRAPH):
        found.update(_of_graph(graph, 0))
    for function in model.messages(_FUNCTIONS):
        found.update(_of_nodes(function, _FUNCTION_NODES, 0))
        for attribute in function.messages(_FUNCTION_ATTRIBUTES):
            found.update(_of_attribute(attribute, 0))
    return found


def _of_graph(graph: Message, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ProtobufError(f"graphs {depth} deep")
    for tensor in graph.messages(_INITIALIZERS):
        yield from _of_tensor(tensor)
    for sparse in graph.messages(_SPARSE_INITIALIZERS):
        yield from _of_sparse(sparse)
    yield from _of_nodes(graph, _NODES, depth)


def _of_nodes(parent: Message, field: int, depth: int) -> Iterator[str]:
    for node in parent.messages(field):
        for attribute in node.messages(_ATTRIBUTES):
            yield from _of_attribute(attribute, depth)


def _of_attribute(attribute: Message, depth: int) -> Iterator[str]:
    for field in _TENSORS:
        for tensor in attribute.messages(field):
            yield from _of_tensor(tensor)
    for field in _SPARSE_TENSORS:
        for sparse in attribute.messages(field):
            yield from _of_sparse(sparse)
    for field in _GRAPHS:
        for graph in attribute.messages(field):
            yield from _of_graph(graph, depth + 1)


def _of_sparse(sparse: Message) -> Iterator[str]:
    for field in _SPARSE_PARTS:
        for tensor in sparse.messages(field):
            yield from _of_tensor(tensor)


def _of_tensor(tensor: Message) -> Iterator[str]:
    for entry in tensor.messages(_EXTERNAL_DATA):
        if "location" in entry.texts(1):
            yield from entry.texts(2)
