"""The checkpoint's names of the matrices in a .pte, which XNNPACK does not keep.

Under KEY in the program's named data, the exporter stores each matrix's name by the fingerprint of
its stored bytes.
"""

import hashlib
import json
from collections.abc import Mapping

from runtime_py.formats.strict_json import read_object

KEY = "gemma_export.weight_names"
PREFIX_BYTES = 1 << 16  # enough to tell any two matrices apart
_MAX_BYTES = 4 << 20


def fingerprint(data: bytes | memoryview) -> str:
    """The key of a matrix: the SHA-256 of its first stored bytes."""
    return hashlib.sha256(data[:PREFIX_BYTES]).hexdigest()


def write_names(names: Mapping[str, str]) -> bytes:
    """Serialize fingerprint -> name, for `read_names`."""
    return json.dumps(dict(names), sort_keys=True).encode()


def read_names(data: bytes | memoryview) -> dict[str, str]:
    """fingerprint -> name; empty if the data is damaged."""
    try:
        values = read_object(bytes(data), _MAX_BYTES)
    except ValueError:
        return {}
    return {
        key: name for key, name in values.items() if isinstance(name, str) and name.isprintable()
    }
