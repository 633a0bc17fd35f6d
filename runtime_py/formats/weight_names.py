"""Which matrix of the checkpoint is which in a .pte: the exporter's word, tied to the bytes.

XNNPACK keeps no names. The exporter stores, under KEY in the program's named data, the name of
every matrix by the fingerprint of the bytes that are stored for it.
"""

import hashlib
import json
from collections.abc import Mapping

from runtime_py.formats.strict_json import read_object

KEY = "gemma_export.weight_names"
PREFIX_BYTES = 1 << 16  # telling two matrices apart needs no more, whatever their size
_MAX_BYTES = 4 << 20


def fingerprint(data: bytes | memoryview) -> str:
    """Of a matrix as it is stored."""
    return hashlib.sha256(data[:PREFIX_BYTES]).hexdigest()


def write_names(names: Mapping[str, str]) -> bytes:
    """fingerprint -> name, as `read_names` reads it."""
    return json.dumps(dict(names), sort_keys=True).encode()


def read_names(data: bytes | memoryview) -> dict[str, str]:
    """fingerprint -> name; empty if this is no such list."""
    try:
        values = read_object(bytes(data), _MAX_BYTES)
    except ValueError:
        return {}
    return {
        key: name for key, name in values.items() if isinstance(name, str) and name.isprintable()
    }
