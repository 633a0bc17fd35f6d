"""The KV buffer of a .litertlm: LiteRT's TensorBuffers, and where their numbers lie."""

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

from runtime_py.backends.kv_pages import KvBuffer, KvPages
from runtime_py.backends.litert_contract import TargetContract, TensorSpec
from runtime_py.backends.litert_model import LoadedModel, zeros
from runtime_py.manifest import SlidingEntry

_CAPSULE = b"LiteRtTensorBuffer"
_FLOAT_BYTES = 4
_ROWS_DIM = 2


def create_kv(
    target: LoadedModel, contract: TargetContract, sliding: SlidingEntry | None
) -> tuple[dict[str, Any], KvPages]:
    """Zeroed TensorBuffers by their names, to be shared between signatures and models.

    A stale row is hidden by the mask, which multiplies it by zero: it must not be a NaN.
    """
    kv: dict[str, Any] = {}
    buffers = []
    for name, tensor in contract.kv.items():
        kv[name] = target.create_buffer(contract.decode, name)
        address = host_address(kv[name], _FLOAT_BYTES * math.prod(tensor.shape))
        if address is None:
            kv[name].write(zeros(tensor))
        else:
            slides = sliding is not None and name.rpartition("_")[2] in map(str, sliding.layers)
            buffers.append(_described(tensor, address, contract.cache_length, slides))
    pages = KvPages(buffers, sliding.window if sliding else None)
    pages.clear()
    return kv, pages


def host_address(buffer: Any, size_bytes: int) -> int | None:
    """Of a TensorBuffer's numbers; None where LiteRT does not say, or has fewer bytes there."""
    address, found = ctypes.c_void_p(), ctypes.c_size_t()
    try:
        library, pointer = _library(), _capsule_pointer()(buffer.capsule, _CAPSULE)
    except (OSError, AttributeError, ValueError):
        return None
    if library.LiteRtGetTensorBufferSize(pointer, ctypes.byref(found)):
        return None
    if library.LiteRtGetTensorBufferHostMemory(pointer, ctypes.byref(address)):
        return None
    return address.value if 0 < size_bytes <= found.value else None


def _described(tensor: TensorSpec, address: int, cache_length: int, slides: bool) -> KvBuffer:
    """Of kv_cache_k_{i} or kv_cache_v_{i}, float32."""
    by_row = tensor.shape[_ROWS_DIM] == cache_length
    num_heads = tensor.shape[1] if by_row else 1
    return KvBuffer(
        address=address,
        num_heads=num_heads,
        num_rows=cache_length,
        row_bytes=_FLOAT_BYTES * math.prod(tensor.shape) // (num_heads * cache_length),
        slides=slides and by_row,
    )


@functools.cache
def _library() -> ctypes.CDLL:
    """The library that ai_edge_litert has loaded."""
    import ai_edge_litert

    library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).with_name("libLiteRt.so")))
    pointers = {"HostMemory": ctypes.c_void_p, "Size": ctypes.c_size_t}
    for what, result in pointers.items():
        function = getattr(library, f"LiteRtGetTensorBuffer{what}")
        function.argtypes = (ctypes.c_void_p, ctypes.POINTER(result))
    return library


@functools.cache
def _capsule_pointer() -> Any:
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
