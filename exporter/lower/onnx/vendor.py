"""The fence around ONNX's tools: private parts of theirs are used here and nowhere else.

pyproject.toml pins onnx, onnx_ir, onnxscript and torch, whose exporter this is. onnx_ir is public
as a whole, and rewriting graphs uses it directly. tests/exporter/lower/onnx/test_lower.py compares
the files with eager torch.
"""

import ast
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch

from exporter.quiet import only_errors

PACKAGES = ("onnx", "onnxscript", "onnx_ir")
# It says that torchvision is not installed.
_LOGGERS = ("torch.onnx._internal.exporter._registration",)
_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the modules it lies in, and its own name


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the tools' own deprecations and missing extras while they work."""
    with only_errors(*_LOGGERS), warnings.catch_warnings(action="ignore"):
        yield


def promise(condition: bool) -> None:
    """Tell the tracer that a condition on a symbolic size holds."""
    torch._check(condition)  # type: ignore[no-untyped-call]


def to_model(
    traced: torch.export.ExportedProgram,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
) -> ir.Model:
    """Translate a traced program to ONNX, with all of its tensors and nothing optimized."""
    program = torch.onnx.export(
        traced,
        (),
        input_names=input_names,
        output_names=output_names,
        opset_version=opset,
        verbose=False,
        optimize=False,
    )
    assert program is not None
    return program.model


def optimize(model: ir.Model) -> None:
    """Let onnxscript fold constants and drop what is not used, in place."""
    from onnxscript import optimizer

    optimizer.optimize_ir(model)


def module_of(node: ir.Node) -> str:
    """The path of the torch module that a node was traced in; "" for the outermost."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    module = str(scopes[-2]) if len(scopes) > 1 else ""
    return "" if module.startswith("_") else module  # the exporter's own


def check_file(path: Path) -> None:
    """Raise onnx's ValidationError unless the file and all its shapes are valid."""
    import onnx

    onnx.checker.check_model(path, full_check=True)
