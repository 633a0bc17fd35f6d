"""Find the bundle's folder from the path that a user gave, or say what that path is."""

from pathlib import Path

from runtime_py.bundle.manifest import MANIFEST_NAME
from runtime_py.errors import RunError
from runtime_py.formats.kinds import Kind, file_kind

_OTHER = f"a file with no {MANIFEST_NAME} beside it; give the folder that gemma-export made"
_GRAPHS: dict[Kind, str] = {"litertlm": "a", "tflite": "a", "pte": "a", "onnx": "an"}
_KINDS: dict[Kind, str] = {
    "gguf": "a GGUF file, which llama.cpp runs; make a bundle of the checkpoint it was made from",
    "safetensors": "weights of a checkpoint; make a bundle of its folder with gemma-export",
    "pickle": "weights of a checkpoint; make a bundle of its folder with gemma-export",
    "pointer": "a git-lfs pointer, not the file itself; run `git lfs pull` in its folder",
    **{
        kind: f"{article} .{kind} without {MANIFEST_NAME} beside it: it is only the graphs of a "
        "bundle; give the folder that gemma-export made"
        for kind, article in _GRAPHS.items()
    },
}


def bundle_folder(named: Path) -> Path:
    """The folder itself, or the folder of a bundle's file.

    Raises:
        RunError: if it is a file outside a bundle, or a checkpoint; saying what it is.
    """
    if named.is_file():
        if (named.parent / MANIFEST_NAME).is_file():
            return named.parent
        kind = file_kind(named)
        what = _OTHER if kind is None else _KINDS[kind]
        raise RunError(f"{named}: {what}")
    if not (named / MANIFEST_NAME).is_file() and (named / "config.json").is_file():
        raise RunError(
            f"{named}: a checkpoint (it has config.json and no {MANIFEST_NAME}); make a bundle of "
            "it with gemma-export"
        )
    return named
