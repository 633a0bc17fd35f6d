"""One .onnx file: an onnxruntime session, and calls bound to our own arrays."""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_py.backends.installed import TESTED, install_command
from runtime_py.errors import RunError
from runtime_py.formats.tensor_spec import FREE, TensorSpec

Array = npt.NDArray[Any]

CPU = "CPUExecutionProvider"
_logger = logging.getLogger(__name__)
_SILENT = 4  # log fatal errors only; all others are raised as well
_DTYPES: dict[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
}


@functools.cache
def _warn_of_untested(release: str) -> None:
    if not release.startswith(TESTED["onnx"]):
        _logger.warning(
            "onnxruntime %s was not tested, %sx was: tokens may differ from the original's; try "
            "`gemma-run check`, or pip install 'onnxruntime==%s*'",
            *(release, TESTED["onnx"], TESTED["onnx"]),
        )


class Runtime:
    """onnxruntime and the session options that the graphs of one bundle share.

    Raises:
        RunError: if onnxruntime is not installed, or lacks a provider.
    """

    def __init__(self, num_threads: int, providers: Sequence[str]) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise RunError(
                f"this bundle needs onnxruntime ({error}); {install_command('onnx')}"
            ) from error
        _warn_of_untested(onnxruntime.__version__)
        known = onnxruntime.get_available_providers()
        for name in providers:
            if name not in known:
                raise RunError(
                    f"{name} is not in this build of onnxruntime {onnxruntime.__version__}, which "
                    f"has {', '.join(known)}; install one that has it (the stock wheel has few: "
                    "most need a package or a build of their own), or leave --provider out"
                )
        self.library = onnxruntime
        self._providers = list(providers)
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = _SILENT
        self._options.intra_op_num_threads = num_threads
        self._options.inter_op_num_threads = 1
        # Tensor sizes change with every token, so a memory pattern would never be reused.
        self._options.enable_mem_pattern = False
        # Every session has its own threads; waiting ones must not occupy the others' cores.
        self._options.add_session_config_entry("session.force_spinning_stop", "1")

    def load(self, path: Path) -> "Graph":
        """Raises RunError if the file is missing or damaged, or leads outside its folder.

        onnxruntime itself refuses external data outside the folder of the file, links included.
        """
        if not path.is_file():
            raise RunError(f"{path}: no such file; copy the bundle again")
        try:
            session = self.library.InferenceSession(
                str(path), sess_options=self._options, providers=self._providers
            )
        except Exception as error:  # onnxruntime's errors share no base class
            reason = _first_line(error)
            raise RunError(f"{path}: does not load: {reason}; copy the file again") from error
        return Graph(self.library, path, session)


class Graph:
    """A loaded graph.

    Attributes:
        inputs, outputs: by name, in the file's order.
        numbers: the metadata, as text.
    """

    def __init__(self, library: Any, path: Path, session: Any) -> None:
        self.path = path
        self.library = library
        self.session = session
        self.inputs = {value.name: _spec(value) for value in session.get_inputs()}
        self.outputs = {value.name: _spec(value) for value in session.get_outputs()}
        self.numbers: Mapping[str, str] = session.get_modelmeta().custom_metadata_map

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> "Call":
        """Make a call that reads and writes these arrays, which may share memory.

        Outputs that are left out are computed, but not returned.
        """
        return Call(self, inputs, outputs)


class Call:
    """A graph bound to its arrays; it runs any number of times without allocating."""

    def __init__(
        self, graph: Graph, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        self._graph = graph
        # Keeps the arrays alive: onnxruntime has only their addresses.
        self._arrays = (*inputs.values(), *outputs.values())
        self._binding = graph.session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_input(name, *_place(array))
        for name, array in outputs.items():
            self._binding.bind_output(name, *_place(array))

    def run(self) -> None:
        try:
            self._graph.session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's errors share no base class
            reason = _first_line(error)
            path = self._graph.path
            raise RunError(f"{path}: does not run: {reason}; copy the file again") from error


def _place(array: Array) -> tuple[str, int, npt.DTypeLike, list[int], int]:
    assert array.flags.c_contiguous
    return "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data


def _spec(value: Any) -> TensorSpec:
    dtype = _DTYPES.get(value.type)
    sizes = (size if isinstance(size, int) and size > 0 else FREE for size in value.shape)
    return TensorSpec(np.dtype(dtype).name if dtype else str(value.type), tuple(sizes))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def zeros(shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
    """Raises RunError if there is not enough memory."""
    try:
        return np.zeros(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise RunError(
            f"a tensor of {math.prod(shape)} numbers: {error}; export with a shorter --context"
        ) from None
