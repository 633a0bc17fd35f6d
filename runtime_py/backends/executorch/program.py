"""Run the methods of one .pte on arrays."""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_py.backends.executorch.library import MAX_RANK, Tensor, load_library
from runtime_py.errors import RunError
from runtime_py.formats.tensor_spec import TensorSpec

Array = npt.NDArray[Any]

_ERROR_BYTES = 2048
# ScalarType of ExecuTorch
_DTYPES: dict[int, npt.DTypeLike] = {4: np.int64, 6: np.float32, 7: np.float64, 11: np.bool_}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class MethodSpec:
    """A method's tensors; a dynamic dimension shows its upper bound."""

    index: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Program:
    """A .pte whose methods share one set of memory arenas. Its file is mapped, not read.

    Args:
        num_threads: of the process's only thread pool, which keeps its size while any program is
            loaded.

    Raises:
        RunError: if the runtime is not installed, or the file is damaged or needs an operator
            that the runtime lacks.
    """

    def __init__(self, path: Path, num_threads: int) -> None:
        self._path = path
        self._library = load_library()
        self._error = ctypes.create_string_buffer(_ERROR_BYTES)
        self._handle: int | None = self._library.gx_load(
            str(path).encode(), num_threads, self._error, _ERROR_BYTES
        )
        if self._handle is None:
            raise RunError(f"{path}: {self._error_text()}; copy the file again or export again")
        self.num_threads: int = self._library.gx_num_threads()
        self.methods: Mapping[str, MethodSpec] = {
            self._library.gx_method_name(self._handle, index).decode(errors="replace"): MethodSpec(
                index, self._describe(index, is_output=0), self._describe(index, is_output=1)
            )
            for index in range(self._library.gx_num_methods(self._handle))
        }

    def run(self, name: str, inputs: Sequence[Array]) -> list[Array]:
        """Run a method on contiguous arrays.

        Returns:
            the outputs, in memory that the next run of any method overwrites and close() frees.

        Raises:
            RunError: if there is no such method, or an input has a wrong dtype or exceeds its
                bound.
        """
        spec = self.methods.get(name)
        if spec is None or self._handle is None:
            raise RunError(f"{self._path}: no method {name}; export again")
        arguments = (Tensor * len(inputs))(*(_lend(array) for array in inputs))
        results = (Tensor * len(spec.outputs))()
        status = self._library.gx_run(
            self._handle,
            spec.index,
            arguments,
            len(inputs),
            results,
            len(results),
            self._error,
            _ERROR_BYTES,
        )
        if status:
            raise RunError(f"{self._path}: {self._error_text()}")
        return [_view(result) for result in results]

    def find_buffer(self, method: str, name: str) -> Array | None:
        """A buffer that a method writes, in place, valid until close(); None if there is none."""
        spec, tensor = self.methods.get(method), Tensor()
        if spec is None or self._handle is None:
            return None
        status = self._library.gx_find_buffer(self._handle, spec.index, name.encode(), tensor)
        return None if status or tensor.dtype not in _DTYPES else _view(tensor)

    def close(self) -> None:
        """Free everything; arrays that run() returned become invalid."""
        handle, self._handle = self._handle, None
        self._library.gx_unload(handle)

    def _describe(self, method: int, *, is_output: int) -> tuple[TensorSpec, ...]:
        specs = []
        for index in range(self._library.gx_num_tensors(self._handle, method, is_output)):
            tensor = Tensor()
            status = self._library.gx_describe(self._handle, method, is_output, index, tensor)
            dtype = _DTYPES.get(tensor.dtype) if status == 0 else None
            name = np.dtype(dtype).name if dtype else "unknown"
            specs.append(TensorSpec(name, tuple(tensor.shape[: tensor.rank])))
        return tuple(specs)

    def _error_text(self) -> str:
        return self._error.value.decode(errors="replace")


def _lend(array: Array) -> Tensor:
    assert array.flags.c_contiguous
    assert array.ndim <= MAX_RANK
    shape = (ctypes.c_int64 * MAX_RANK)(*array.shape)
    return Tensor(array.ctypes.data, _CODES[array.dtype], array.ndim, shape)


def _view(tensor: Tensor) -> Array:
    shape = tuple(tensor.shape[: tensor.rank])
    dtype = np.dtype(_DTYPES[tensor.dtype])
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    data = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(tensor.data)
    return np.frombuffer(data, dtype).reshape(shape)
