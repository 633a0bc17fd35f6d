"""What the exported files hold, read from the files themselves, without their runtimes."""

from collections.abc import Callable, Mapping
from pathlib import Path

from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.errors import RunError
from runtime_py.formats.flatbuffer import FlatbufferError
from runtime_py.formats.protobuf import ProtobufError
from runtime_py.inspection import executorch, litert, onnx
from runtime_py.inspection.findings import Findings

INSPECT: Mapping[RuntimeName, Callable[[Path], Findings]] = {
    "litert": litert.inspect,
    "executorch": executorch.inspect,
    "onnx": onnx.inspect,
}


def inspect_bundle(bundle: Bundle, runtime: RuntimeName) -> Findings:
    """Read one runtime's files; the runtime need not be installed.

    Raises:
        RunError: if a file is damaged.
    """
    path = bundle.model_path(runtime)
    try:
        return INSPECT[runtime](path)
    except (FlatbufferError, ProtobufError) as error:
        raise RunError(f"{path}: damaged: {error}; copy the file again") from error


__all__ = ["INSPECT", "Findings", "inspect_bundle"]
