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
    kv = {name: target.create_buffer(contract.decode, name) for name in contract.kv}
    addresses = {name: host_address(buffer) for name, buffer in kv.items()}
    buffers = [
        _described(name, tensor, address, contract.cache_length, sliding)
        for name, tensor in contract.kv.items()
        if (address := addresses[name]) is not None
    ]
    for name, address in addresses.items():
        if address is None:
            kv[name].write(zeros(contract.kv[name]))
    pages = KvPages(buffers, sliding.window if sliding else None)
    pages.clear()
    return kv, pages


def host_address(buffer: Any) -> int | None:
    """Of a TensorBuffer's numbers; None where LiteRT does not say."""
    address = ctypes.c_void_p()
    try:
        pointer = _capsule_pointer()(buffer.capsule, _CAPSULE)
        status = _library().LiteRtGetTensorBufferHostMemory(pointer, ctypes.byref(address))
    except (OSError, AttributeError, ValueError):
        return None
    return None if status else address.value


def _described(
    name: str,
    tensor: TensorSpec,
    address: int,
    cache_length: int,
    sliding: SlidingEntry | None,
) -> KvBuffer:
    """Of kv_cache_k_{i} or kv_cache_v_{i}, float32."""
    size_bytes = _FLOAT_BYTES * math.prod(tensor.shape)
    layers = sliding.layers if sliding else ()
    by_row = len(tensor.shape) == 4 and tensor.shape[_ROWS_DIM] == cache_length
    num_heads = tensor.shape[1] if by_row else 1
    return KvBuffer(
        address=address,
        num_heads=num_heads,
        num_rows=cache_length,
        row_bytes=size_bytes // (num_heads * cache_length),
        slides=by_row and int(name.rpartition("_")[2]) in layers,
    )


@functools.cache
def _library() -> ctypes.CDLL:
    """The library that ai_edge_litert has loaded."""
    import ai_edge_litert

    library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).with_name("libLiteRt.so")))
    function = library.LiteRtGetTensorBufferHostMemory
    function.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
    return library


@functools.cache
def _capsule_pointer() -> Any:
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
