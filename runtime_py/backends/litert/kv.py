"""Which KV rows of a .litertlm can be released."""

from collections.abc import Mapping

from runtime_py.backends.kv_pages import KvBuffer, KvPages
from runtime_py.backends.litert.library import Array
from runtime_py.bundle.manifest import SlidingEntry

_ROWS_DIM = 2


def kv_pages(kv: Mapping[str, Array], cache_length: int, sliding: SlidingEntry | None) -> KvPages:
    """For kv_cache_k_{i} and kv_cache_v_{i}; those of a sliding layer are [1, G, C, E]."""
    layers = map(str, sliding.layers) if sliding else ()
    names = {f"kv_cache_{part}_{layer}" for layer in layers for part in "kv"}
    buffers = [_buffer(rows, cache_length, name in names) for name, rows in kv.items()]
    return KvPages(buffers, sliding.window if sliding else None)


def _buffer(rows: Array, cache_length: int, slides: bool) -> KvBuffer:
    by_row = rows.shape[_ROWS_DIM] == cache_length
    num_heads = rows.shape[1] if by_row else 1
    return KvBuffer(
        address=rows.ctypes.data,
        num_heads=num_heads,
        num_rows=cache_length,
        row_bytes=rows.nbytes // (num_heads * cache_length),
        slides=slides and by_row,
    )
