"""Which known format a file has, by its first bytes or else its name."""

from pathlib import Path
from typing import Literal

Kind = Literal["gguf", "litertlm", "tflite", "pte", "onnx", "safetensors", "pickle", "pointer"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# git-lfs leaves such a text in place of a file that it did not download.
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024
_BY_BEGINNING: dict[bytes, Kind] = {
    b"GGUF": "gguf",
    b"LITERTLM": "litertlm",
    _POINTER: "pointer",
}
_BY_SUFFIX: dict[str, Kind] = {
    ".gguf": "gguf",
    ".litertlm": "litertlm",
    ".tflite": "tflite",
    ".pte": "pte",
    ".onnx": "onnx",
    ".safetensors": "safetensors",
    **dict.fromkeys(PICKLES, "pickle"),
}


def file_kind(path: Path) -> Kind | None:
    """None for a file of no known format; an unreadable file is judged by its name."""
    beginning = _beginning(path)
    for start, kind in _BY_BEGINNING.items():
        if beginning.startswith(start):
            return kind
    return _BY_SUFFIX.get(path.suffix.lower())


def is_pointer(path: Path) -> bool:
    """Whether a file is a git-lfs pointer, which is always small."""
    try:
        return path.stat().st_size <= _MAX_POINTER_BYTES and _beginning(path).startswith(_POINTER)
    except OSError:
        return False


def _beginning(path: Path) -> bytes:
    """Empty for what is no regular file: opening a pipe would wait."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(len(_POINTER))
    except OSError:
        return b""
