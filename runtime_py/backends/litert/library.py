"""The part of LiteRT's C API (libLiteRt in ai_edge_litert's wheel) that graphs on the CPU need.

The wheel's Python classes copy every input, accept a model as `bytes` only, build lists of buffers
for every call and do not tell where a buffer lies. Here every tensor is one of our arrays, and a
run is one call. The C API may change with any release, so only one release is accepted.

Source: litert/c/*.h of google-ai-edge/LiteRT; the structures' sizes are asserted there.
"""

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_py.backends.installed import TESTED, install_command, is_installed, version
from runtime_py.backends.litert.accelerators import hide_accelerator
from runtime_py.errors import RunError

Array = npt.NDArray[Any]

PACKAGE = "ai-edge-litert"
RELEASE = TESTED["litert"]  # whose headers this file follows
_NAMES = {"darwin": "libLiteRt.dylib", "win32": "libLiteRt.dll"}
_CPU = 1  # kLiteRtHwAcceleratorCpu
_ELEMENT_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int32): 2, np.dtype(np.int8): 9}
_MAX_RANK = 8
_STATUS = {
    1: "an invalid argument",
    2: "out of memory",
    3: "a failure while it ran",
    5: "something it does not support",
    500: "a file that it cannot read",
    501: "a damaged model",
    504: "a graph that does not compile",
}

_handle, _size = ctypes.c_void_p, ctypes.c_size_t
_handles = ctypes.POINTER(_handle)


class LiteRtError(Exception):
    """A call of the C API failed; callers say which file and raise RunError."""


class _Layout(ctypes.Structure):
    _fields_ = (
        ("rank", ctypes.c_uint32),  # 7 bits, and one bit for whether there are strides
        ("dimensions", ctypes.c_int32 * _MAX_RANK),
        ("strides", ctypes.c_uint32 * _MAX_RANK),
    )


class _TensorType(ctypes.Structure):
    _fields_ = (("element_type", ctypes.c_int32), ("layout", _Layout))


_RUN = "LiteRtRunCompiledModel"

# name -> its arguments; all return a status.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "LiteRtCreateEnvironment": (ctypes.c_int, _handle, _handles),
    "LiteRtCreateModelFromBuffer": (_handle, _handle, _size, _handles),
    "LiteRtCreateOptions": (_handles,),
    "LiteRtSetOptionsHardwareAccelerators": (_handle, ctypes.c_int),
    "LiteRtCreateOpaqueOptions": (ctypes.c_char_p, _handle, _handle, _handles),
    "LiteRtAddOpaqueOptions": (_handle, _handle),
    "LiteRtCreateCompiledModel": (_handle, _handle, _handle, _handles),
    "LiteRtGetNumModelSignatures": (_handle, ctypes.POINTER(_size)),
    "LiteRtGetModelSignature": (_handle, _size, _handles),
    "LiteRtGetSignatureKey": (_handle, ctypes.POINTER(ctypes.c_char_p)),
    "LiteRtGetNumSignatureInputs": (_handle, ctypes.POINTER(_size)),
    "LiteRtGetNumSignatureOutputs": (_handle, ctypes.POINTER(_size)),
    "LiteRtGetSignatureInputName": (_handle, _size, ctypes.POINTER(ctypes.c_char_p)),
    "LiteRtGetSignatureOutputName": (_handle, _size, ctypes.POINTER(ctypes.c_char_p)),
    "LiteRtCreateTensorBufferFromHostMemory": (
        *(ctypes.POINTER(_TensorType), _handle, _size, _handle, _handles),
    ),
    _RUN: (_handle, _size, _size, _handle, _size, _handle),
}
_DESTROYERS = (
    *("LiteRtDestroyEnvironment", "LiteRtDestroyModel", "LiteRtDestroyOptions"),
    *("LiteRtDestroyCompiledModel", "LiteRtDestroyTensorBuffer"),
)


@functools.cache
def load_library() -> ctypes.CDLL:
    """libLiteRt, once per process.

    Raises:
        RunError: if ai_edge_litert is not installed, is of another release, or does not load.
    """
    install = install_command("litert")
    found = importlib.util.find_spec("ai_edge_litert") if is_installed("litert") else None
    if found is None or not found.submodule_search_locations:
        raise RunError(f"this bundle needs ai_edge_litert, which is not installed; {install}")
    release = version(PACKAGE) or "of no known release"
    if not release.startswith(RELEASE):
        raise RunError(f"{PACKAGE} is {release}, this runtime needs {RELEASE}x; {install}")
    path = Path(found.submodule_search_locations[0]) / _NAMES.get(sys.platform, "libLiteRt.so")
    hide_accelerator()
    try:
        library = ctypes.CDLL(str(path))
        for name, arguments in _FUNCTIONS.items():
            getattr(library, name).argtypes = arguments
        for name in _DESTROYERS:
            getattr(library, name).argtypes, getattr(library, name).restype = (_handle,), None
    except (OSError, AttributeError) as error:
        raise RunError(f"{PACKAGE} {release} does not load: {error}; {install}") from error
    return library


class Environment:
    """LiteRT's environment: one per process, never freed."""

    def __init__(self) -> None:
        self.library = load_library()
        self.handle = _created(self.library.LiteRtCreateEnvironment, 0, None)


@functools.cache
def environment() -> Environment:
    """Raises RunError as load_library does."""
    return Environment()


@dataclass(frozen=True)
class Signature:
    """The names of a signature's tensors, in the order of a call's arrays."""

    index: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class CompiledModel:
    """A .tflite in memory of the caller's, which stays there until close().

    Args:
        content: its bytes.
        num_threads: of XNNPACK.
        weight_cache_path: where XNNPACK keeps repacked weights; "" repacks them for every graph.

    Raises:
        LiteRtError: if LiteRT refuses it.
    """

    def __init__(self, content: Array, num_threads: int, weight_cache_path: str) -> None:
        self._content = content
        self._library = library = environment().library
        self._compiled = _handle()
        self._model = _created(
            library.LiteRtCreateModelFromBuffer,
            environment().handle,
            content.ctypes.data,
            content.nbytes,
        )
        try:
            options = _cpu_options(library, num_threads, weight_cache_path)
            try:
                self._compiled = _created(
                    library.LiteRtCreateCompiledModel,
                    environment().handle,
                    self._model,
                    options,
                )
            finally:
                library.LiteRtDestroyOptions(options)
        except BaseException:
            self.close()
            raise

    def signatures(self) -> dict[str, Signature]:
        """The signatures, by name."""
        library, found = self._library, {}
        for index in range(_number(library.LiteRtGetNumModelSignatures, self._model)):
            entry = _created(library.LiteRtGetModelSignature, self._model, index)
            inputs, outputs = (
                tuple(_text(name, entry, i) for i in range(_number(count, entry)))
                for count, name in (
                    (library.LiteRtGetNumSignatureInputs, library.LiteRtGetSignatureInputName),
                    (library.LiteRtGetNumSignatureOutputs, library.LiteRtGetSignatureOutputName),
                )
            )
            found[_text(library.LiteRtGetSignatureKey, entry)] = Signature(index, inputs, outputs)
        return found

    def call(self, index: int, inputs: Sequence[Array], outputs: Sequence[Array]) -> "Call":
        """Make a call of signature `index` on these arrays; inputs and outputs may share some.

        They must be aligned(): LiteRT reads and writes where they lie.
        """
        return Call(self, self._compiled, index, inputs, outputs)

    def close(self) -> None:
        """Free the model. Calls must not run afterwards."""
        compiled, self._compiled = self._compiled, _handle()
        model, self._model = self._model, _handle()
        if compiled:
            self._library.LiteRtDestroyCompiledModel(compiled)
        if model:
            self._library.LiteRtDestroyModel(model)


class Call:
    """A signature bound to its arrays; it runs any number of times without allocating.

    Attributes:
        run: returns a status; where it is not 0, reason() says what went wrong.
    """

    def __init__(
        self,
        model: CompiledModel,
        compiled: ctypes.c_void_p,
        index: int,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
    ) -> None:
        self._library = environment().library
        self._kept = (model, *inputs, *outputs)  # keeps them alive: LiteRT has only their addresses
        by_address = {array.ctypes.data: array for array in (*inputs, *outputs)}
        self._buffers = {
            address: _tensor_buffer(self._library, array) for address, array in by_address.items()
        }
        groups = [
            (_handle * len(arrays))(*(self._buffers[array.ctypes.data] for array in arrays))
            for arrays in (inputs, outputs)
        ]
        self._groups = groups
        arguments = (
            *(compiled.value, index),
            *(len(inputs), ctypes.addressof(groups[0])),
            *(len(outputs), ctypes.addressof(groups[1])),
        )
        # The arguments are converted once, not at every call: library["name"] gives a function
        # object of its own, without the argument types that would convert them again.
        kinds = _FUNCTIONS[_RUN]
        converted = (kind(given) for kind, given in zip(kinds, arguments, strict=True))
        self.run: Callable[[], int] = functools.partial(self._library[_RUN], *converted)

    def __del__(self) -> None:
        for buffer in self.__dict__.get("_buffers", {}).values():
            self._library.LiteRtDestroyTensorBuffer(buffer)


def aligned(shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
    """A zeroed array, aligned for LiteRT and padded, since kernels may read past its end.

    Raises:
        RunError: if there is no such room in memory.
    """
    alignment = 64
    size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        raw = np.zeros(size_bytes + 2 * alignment, np.uint8)
    except (MemoryError, ValueError) as error:
        raise RunError(f"a tensor of {list(shape)}: {error}; use a shorter --context") from None
    start = -raw.ctypes.data % alignment
    return raw[start : start + size_bytes].view(dtype).reshape(shape)


def _cpu_options(library: ctypes.CDLL, num_threads: int, weight_cache_path: str) -> ctypes.c_void_p:
    # The format of LrtGetOpaqueCpuOptionsData, which this library does not export.
    text = f"num_threads = {num_threads}\n"
    if weight_cache_path:
        text += f'weight_cache_file_path = "{weight_cache_path}"\n'
    options = _created(library.LiteRtCreateOptions)
    _check(library.LiteRtSetOptionsHardwareAccelerators(options, _CPU))
    libc = ctypes.CDLL(None)
    libc.strdup.restype, libc.strdup.argtypes = ctypes.c_void_p, (ctypes.c_char_p,)
    free = ctypes.cast(libc.free, ctypes.c_void_p)
    payload = libc.strdup(text.encode())  # LiteRT frees it
    opaque = _created(library.LiteRtCreateOpaqueOptions, b"xnnpack", payload, free)
    _check(library.LiteRtAddOpaqueOptions(options, opaque))
    return options


def _tensor_buffer(library: ctypes.CDLL, array: Array) -> ctypes.c_void_p:
    tensor_type = _TensorType(element_type=_ELEMENT_TYPES[array.dtype])
    tensor_type.layout.rank = array.ndim
    tensor_type.layout.dimensions[: array.ndim] = array.shape
    return _created(
        library.LiteRtCreateTensorBufferFromHostMemory,
        ctypes.byref(tensor_type),
        array.ctypes.data,
        array.nbytes,
        None,
    )


def _created(function: Any, *arguments: Any) -> ctypes.c_void_p:
    made = _handle()
    _check(function(*arguments, ctypes.byref(made)))
    return made


def _number(function: Any, *arguments: Any) -> int:
    number = _size()
    _check(function(*arguments, ctypes.byref(number)))
    return number.value


def _text(function: Any, *arguments: Any) -> str:
    text = ctypes.c_char_p()
    _check(function(*arguments, ctypes.byref(text)))
    return (text.value or b"").decode(errors="replace")


def _check(status: int) -> None:
    if status:
        raise LiteRtError(reason(status))


def reason(status: int) -> str:
    """The text for a status that is not 0."""
    return f"LiteRT reports {_STATUS.get(status, 'an error')} (status {status})"
