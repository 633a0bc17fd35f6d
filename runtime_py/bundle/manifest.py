"""manifest.json: what a bundle holds; the reader owns the format, the exporter writes through it.

A manifest comes from anywhere, so nothing in it is believed before it is checked: unknown keys,
wrong types, absurd sizes and paths that leave the bundle are refused with one line.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtime_py.errors import RunError
from runtime_py.terminal.printable import shown

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_DRAFT_LENGTH = 63
_CHUNK_BYTES = 1 << 20

RuntimeName = Literal["litert", "onnx", "executorch"]


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or not pure.parts:
        raise ValueError(f"{shown(repr(path))} leaves the bundle")
    return path


BundlePath = Annotated[str, AfterValidator(_inside)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
LayerIndex = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenText = Annotated[str, Field(max_length=1000)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """Size and checksum of one file, so that a truncated or altered one is refused."""

    size_bytes: Annotated[int, Field(ge=0, le=2**40)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SlidingEntry(_Strict):
    """The layers that see only the last rows before a token, of those that own KV rows."""

    window: Count  # rows that they see, the token's own included
    layers: Annotated[tuple[LayerIndex, ...], Field(strict=False, min_length=1, max_length=1000)]


class ModelEntry(_Strict):
    """The sizes a user asks about and a loop needs."""

    vocab_size: Count
    hidden_size: Count
    num_layers: Count
    context_length: Count  # tokens of prompt and answer together
    has_drafter: bool
    sliding: SlidingEntry | None = None  # of older bundles; unused, the graph files say it


class Tolerances(_Strict):
    """What `gemma-run check` demands of a recipe; the recipe's file says why."""

    # Relative to the largest logit; of more nothing could be left.
    max_logit_error: Annotated[float, Field(gt=0, le=10)] = 1.0
    min_agreement: Share = 0.0  # of greedy tokens, the original's text given
    min_acceptance_ratio: Share = 0.5  # accepted first drafts, relative to the original drafter's


class RuntimeEntry(_Strict):
    """One runtime's graphs."""

    model: BundlePath  # the file the runtime loads
    recipe: Annotated[str, Field(min_length=1, max_length=200)]
    tolerances: Tolerances


class TokenEntry(_Strict):
    """How text becomes tokens and where an answer ends."""

    tokenizer: BundlePath
    chat_template: BundlePath | None
    bos_token_id: TokenId | None
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(strict=False, max_length=64)]
    # Name -> text, as a chat template may use them ("eos_token"); older bundles do not say.
    special_tokens: Annotated[dict[TokenText, TokenText], Field(max_length=200)] | None = None


class Manifest(_Strict):
    """The whole manifest, format 1."""

    format_version: Literal[1]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    device: Annotated[str, Field(min_length=1, max_length=60)]  # the target it was exported for
    made_by: dict[str, str]  # tool -> version
    model: ModelEntry
    tokens: TokenEntry
    draft_length: Annotated[int, Field(ge=0, le=MAX_DRAFT_LENGTH)]  # default drafts per round
    runtimes: dict[RuntimeName, RuntimeEntry]
    reference: BundlePath
    sources: dict[str, str] = {}  # target, drafter -> repository@commit, if from the hub
    files: dict[BundlePath, FileEntry]

    @model_validator(mode="after")
    def _files_are_listed(self) -> Self:
        if not self.runtimes:
            raise ValueError("no runtime is listed")
        used = [entry.model for entry in self.runtimes.values()]
        used += [self.reference, self.tokens.tokenizer, self.tokens.chat_template or self.reference]
        for path in used:
            if path not in self.files:
                raise ValueError(f"{shown(repr(path))} is used but not listed under files")
        for token_id in (self.tokens.bos_token_id, *self.tokens.stop_token_ids):
            if token_id is not None and token_id >= self.model.vocab_size:
                raise ValueError(f"token {token_id} of a vocabulary of {self.model.vocab_size}")
        return self


def read_manifest(bundle: Path) -> Manifest:
    """Read and check a bundle's manifest, and that every file it lists is there, at its size.

    Raises:
        RunError: with one line that names the bundle, what is wrong and what to do.
    """
    manifest = parse_manifest(bundle)
    for name, entry in manifest.files.items():
        _check_size(bundle, name, entry)
    return manifest


def parse_manifest(bundle: Path) -> Manifest:
    """Read and check a bundle's manifest alone, whatever has become of the files it lists.

    Raises:
        RunError: as read_manifest does.
    """
    path = bundle_path(bundle, MANIFEST_NAME)
    if not bundle.is_dir():
        raise RunError(f"{bundle}: no such bundle folder; make one with gemma-export")
    if not path.is_file():
        raise RunError(
            f"{bundle}: no {MANIFEST_NAME} in it, so this is no bundle; see gemma-export"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise RunError(f"{path}: {path.stat().st_size} bytes; a manifest has at most 1 MiB")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not valid JSON ({error}); export again") from None
    found = values.get("format_version") if isinstance(values, dict) else None
    if found != FORMAT_VERSION:
        raise RunError(
            f"{path}: manifest format {shown(repr(found))}, this runtime reads {FORMAT_VERSION}; "
            "install the matching gemma-run or export again"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise RunError(
            f"{path}: {shown(where)}: {shown(first['msg'], 300)}; export again"
        ) from None


def _check_size(bundle: Path, name: str, entry: FileEntry) -> None:
    path = bundle_path(bundle, name)
    if not path.is_file():
        found = "no regular file" if path.exists() else "missing"
        raise RunError(
            f"{bundle}: {shown(name)} is listed in the manifest but {found}; copy it again"
        )
    if path.stat().st_size != entry.size_bytes:
        raise RunError(
            f"{path}: {path.stat().st_size} bytes, the manifest says {entry.size_bytes}; the file "
            "is truncated or altered, copy it again"
        )
    if not os.access(path, os.R_OK):
        raise RunError(f"{path}: you may not read it; chmod a+r it, or copy it as its owner")


def bundle_path(bundle: Path, name: str) -> Path:
    """A file of the bundle, refused when a link in it leads outside."""
    path = bundle / name
    try:
        inside = path.resolve().is_relative_to(bundle.resolve())
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        raise RunError(
            f"{bundle}: {shown(repr(name))} leads outside the bundle or nowhere; refuse it or "
            "export again"
        )
    return path


def checksum(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """The sha256 of a file, read in chunks; `progress` hears of the bytes read."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(done)
    return digest.hexdigest()


def file_entry(path: Path) -> FileEntry:
    """Measure one file."""
    return FileEntry(size_bytes=path.stat().st_size, sha256=checksum(path))


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write the manifest and flush it to the disk."""
    with (bundle / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
