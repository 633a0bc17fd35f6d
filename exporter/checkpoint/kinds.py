"""Recognize a path that is no checkpoint but another tool's file or folder, and say what to do."""

from fnmatch import fnmatchcase
from pathlib import Path

from exporter.checkpoint.files import INDEX_FILE, SINGLE_FILE, find_shards
from exporter.errors import ExportError
from runtime_py.formats.kinds import PICKLES, Kind, file_kind, is_pointer
from runtime_py.terminal.printable import shown

NEEDED = f"needed the folder of a Gemma 4 checkpoint (config.json and {SINGLE_FILE})"
_PICKLE = (
    "a pickle, which can run code when opened",
    "convert it to safetensors (transformers: from_pretrained, then save_pretrained) and give "
    "that folder",
)
_EXPORTED = ("exported already", "run it with gemma-run, or give the checkpoint it was made from")
_KINDS: dict[Kind, tuple[str, str]] = {
    "gguf": ("a GGUF file", "give the checkpoint that it was made from"),
    "litertlm": _EXPORTED,
    "tflite": _EXPORTED,
    "pte": _EXPORTED,
    "onnx": _EXPORTED,
    "safetensors": ("a file of weights", "give the folder that it is in"),
    "pickle": _PICKLE,
    "pointer": ("a git-lfs pointer", "run `git lfs pull` there and give the folder"),
}
_OTHER = ("a file", "give the folder that holds config.json")
_READ = ("*.json", "*.jinja", "model*.safetensors", "adapter_model.safetensors")


def require_folder(folder: Path) -> None:
    """Refuse a path that is no checkpoint, before anything is read or downloaded.

    Raises:
        ExportError: saying what it is and what to give instead.
    """
    if not _exists(folder):
        raise ExportError(f"{shown(folder, 300)}: no such folder; {NEEDED}")
    if not folder.is_dir():
        kind = file_kind(folder)
        what, step = _OTHER if kind is None else _KINDS[kind]
        raise ExportError(f"{shown(folder, 300)}: {what}, {NEEDED}; {step}")
    if not (folder / "config.json").is_file():
        raise ExportError(f"{shown(folder, 300)}: {_folder_kind(folder)}")
    refuse_pointers(folder)


def refuse_pointers(folder: Path) -> None:
    """Refuse a folder with git-lfs pointers in place of files."""
    pointers = sorted(
        path.name
        for path in folder.iterdir()
        if any(fnmatchcase(path.name, pattern) for pattern in _READ) and is_pointer(path)
    )
    if pointers:
        more = f" and {len(pointers) - 1} more" if len(pointers) > 1 else ""
        raise ExportError(
            f"{shown(folder, 300)}: {shown(pointers[0])}{more}: a git-lfs pointer, not the file "
            "itself; run `git lfs pull` in that folder"
        )


def require_safetensors(folder: Path) -> None:
    """Refuse a checkpoint whose weights are missing or not safetensors."""
    if (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file() or find_shards(folder):
        return
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        what, step = _PICKLE
        raise ExportError(f"{shown(folder, 300)}: {shown(pickles[0])} is {what}; {step}")
    others = [name for name in names if name.endswith(".safetensors")]
    found = f", found {shown(others[0])}" if others else ""
    raise ExportError(
        f"{shown(folder, 300)}: no {SINGLE_FILE} and no {INDEX_FILE}{found}; download the weights "
        "too"
    )


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except (OSError, ValueError):  # not a possible path, such as a name of 5000 letters
        return False


def _folder_kind(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return (
            "a LoRA adapter, needed a whole Gemma 4 checkpoint; give the model it was trained on "
            "and this folder as --adapter"
        )
    if any(folder.glob("*.gguf")):
        return (
            "a GGUF folder, needed the safetensors checkpoint the GGUF was made from; "
            "give that folder"
        )
    if (folder / "manifest.json").is_file():
        what, step = _EXPORTED
        return f"a bundle, {what}, {NEEDED}; {step}"
    return "no config.json, so not a checkpoint; give the folder that holds config.json"
