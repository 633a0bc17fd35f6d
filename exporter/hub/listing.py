"""Read and check a hub's listing of one model, which is untrusted input."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from huggingface_hub.utils import (  # type: ignore[attr-defined]
    HFValidationError,
    build_hf_headers,
    validate_repo_id,
)

from exporter.config import HubModel
from exporter.errors import ExportError
from exporter.hub.request import read
from exporter.hub.transfer import RemoteFile
from runtime_py.formats.strict_json import read_json
from runtime_py.terminal.printable import shown

# What an export reads. Code and pickles are never downloaded.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
MAX_LISTING_BYTES = 8 << 20  # enough for 30,000 files
MAX_SMALL_BYTES = 100 << 20  # of a file that git itself stores
MAX_LARGE_BYTES = 1 << 42
COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")


@dataclass(frozen=True)
class Listing:
    """One model at one commit."""

    model: HubModel
    commit: str
    files: tuple[RemoteFile, ...]  # those that an export reads, small ones first
    tree: Mapping[str, Mapping[str, Any]]  # every file, as huggingface_hub's cache records it


def read_listing(model: HubModel, endpoint: str, timeout_s: float) -> Listing:
    """Ask the hub for a model's files.

    Raises:
        ExportError: the repository is no checkpoint that an export could read.
        ValueError: the answer is no hub's.
        httpx2.HTTPError: the hub refuses, or does not answer.
    """
    try:
        validate_repo_id(model.repo)
    except HFValidationError as error:
        raise ExportError(f"{shown(model)}: no model of a hub ({shown(error)})") from None
    url = f"{endpoint}/api/models/{model.repo}/revision/{quote(model.revision, safe='')}?blobs=true"
    return parse_listing(model, read(url, build_hf_headers(), MAX_LISTING_BYTES, timeout_s))


def parse_listing(model: HubModel, content: bytes) -> Listing:
    """Parse the hub's answer; raises as read_listing does."""
    info = _object(read_json(content, MAX_LISTING_BYTES), "answer")
    commit, rows = info.get("sha"), info.get("siblings")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise ValueError(f"commit {shown(repr(commit))}")
    if not isinstance(rows, list):
        raise ValueError("it lists no files")
    found = [_object(row, "file") for row in rows]
    names = [_text(row, "rfilename") for row in found]
    wanted = {name: row for name, row in zip(names, found, strict=True) if _is_read(name)}
    _refuse_useless(model, names, list(wanted))
    _refuse_odd_names(model, list(wanted))
    files = [_remote_file(name, row) for name, row in wanted.items()]
    files.sort(key=lambda file: file.is_large)
    return Listing(model, commit, tuple(files), _tree(names, found))


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} {shown(repr(value))}")
    return value


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} {shown(repr(value))}")
    return value


def _is_read(name: str) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in PATTERNS)


def _refuse_odd_names(model: HubModel, names: list[str]) -> None:
    by_folded: dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name):
            raise ExportError(
                f"{model}: {shown(repr(name))} is no file name for a checkpoint; rename it there, "
                "or download the model yourself and give its folder"
            )
        other = by_folded.setdefault(name.casefold(), name)
        if other != name:
            raise ExportError(
                f"{model}: {shown(other)} and {shown(name)} differ in case only, which some disks "
                "cannot hold; rename one of them there"
            )


def _remote_file(name: str, row: Mapping[str, Any]) -> RemoteFile:
    if row.get("lfs") is None:
        size, blob_id = row.get("size"), row.get("blobId")
        limit, pattern = MAX_SMALL_BYTES, COMMIT
    else:
        lfs = _object(row["lfs"], f"{name}: lfs")
        size, blob_id, limit, pattern = lfs.get("size"), lfs.get("sha256"), MAX_LARGE_BYTES, _SHA256
    if type(size) is not int or not 0 <= size <= limit:
        raise ValueError(f"{name} of {shown(repr(size))} bytes")
    if not isinstance(blob_id, str) or not pattern.fullmatch(blob_id):
        raise ValueError(f"{name} with the checksum {shown(repr(blob_id))}")
    return RemoteFile(name=name, size_bytes=size, blob_id=blob_id)


def _tree(names: list[str], rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    tree = {}
    for name, row in zip(names, rows, strict=True):
        parts, pointer = name.removeprefix(".").split("/"), row.get("blobId")
        try:
            file = _remote_file(name, row)
        except ValueError:
            continue  # this file is not read, so it is no reason to refuse
        if not all(_NAME.fullmatch(part) for part in parts):
            continue
        if isinstance(pointer, str) and COMMIT.fullmatch(pointer):
            lfs = {"lfs_sha256": file.blob_id, "lfs_size": file.size_bytes} if file.is_large else {}
            tree[name] = {"size": file.size_bytes, "blob_id": pointer, **lfs}
    return tree


def _refuse_useless(model: HubModel, names: list[str], wanted: list[str]) -> None:
    """Refuse a repository that is no checkpoint before gigabytes are downloaded."""
    if any(name.endswith(".safetensors") for name in wanted) and "config.json" in wanted:
        return
    if "adapter_config.json" in names:
        what = "a LoRA adapter, needed a whole checkpoint; give the model it was made for"
    elif any(name.endswith(".gguf") for name in names):
        what = "GGUF files, needed safetensors; give the checkpoint that they were made from"
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        what = "pickles, which can run code when opened; give a repository of safetensors"
    else:
        what = "no config.json with model*.safetensors; give a transformers checkpoint"
    raise ExportError(f"{model}: {what}")
