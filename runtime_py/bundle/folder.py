"""Find the bundle's folder from the path that a user gave, or say what that path is."""

from pathlib import Path

from runtime_py.bundle.manifest import MANIFEST_NAME
from runtime_py.errors import RunError

_MADE_HERE = "it is only the graphs of a bundle; give the folder that gemma-export made"
_BY_BEGINNING = {
    b"GGUF": "a GGUF file, which llama.cpp runs; make a bundle of the checkpoint it was made from",
    b"LITERTLM": f"a .litertlm without {MANIFEST_NAME} beside it: {_MADE_HERE}",
}
_BY_SUFFIX = {
    ".pte": f"a .pte without {MANIFEST_NAME} beside it: {_MADE_HERE}",
    ".onnx": f"an .onnx without {MANIFEST_NAME} beside it: {_MADE_HERE}",
    ".safetensors": "weights of a checkpoint; make a bundle of its folder with gemma-export",
    ".gguf": _BY_BEGINNING[b"GGUF"],
    ".litertlm": _BY_BEGINNING[b"LITERTLM"],
}


def bundle_folder(named: Path) -> Path:
    """The folder itself, or the folder of a bundle's file.

    Raises:
        RunError: if it is a file outside a bundle, or a checkpoint; saying what it is.
    """
    if named.is_file():
        if (named.parent / MANIFEST_NAME).is_file():
            return named.parent
        raise RunError(f"{named}: {_kind(named)}")
    if not (named / MANIFEST_NAME).is_file() and (named / "config.json").is_file():
        raise RunError(
            f"{named}: a checkpoint (it has config.json and no {MANIFEST_NAME}); make a bundle of "
            "it with gemma-export"
        )
    return named


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        beginning = file.read(8)
    for start, kind in _BY_BEGINNING.items():
        if beginning.startswith(start):
            return kind
    other = f"a file with no {MANIFEST_NAME} beside it; give the folder that gemma-export made"
    return _BY_SUFFIX.get(path.suffix.lower(), other)
