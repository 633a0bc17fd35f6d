"""manifest.json: what a bundle holds. docs/bundle-format.md is the specification.

A bundle may come from anywhere, so its manifest is checked before anything in it is used: unknown
keys, wrong types, values out of range and paths that leave the bundle are refused.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from runtime_py.errors import RunError
from runtime_py.formats.strict_json import read_object
from runtime_py.terminal.printable import shown

FORMAT_MAJOR, FORMAT_MINOR = 1, 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_DRAFT_LENGTH = 63
_CHUNK_BYTES = 1 << 20
# The integer 1 stands for 1.0: manifests had no minor version before 1.1.
_VERSION = re.compile(rf"{FORMAT_MAJOR}\.([1-9][0-9]{{0,3}})")
# Names joined by "/", none of them empty, "." or "..".
_PATH = re.compile(r"^(?!(?:.*/)?\.{0,2}(?:/|$))[^\\\x00-\x1f\x7f]{1,1000}$")
# The pydantic context in which a newer minor version is validated.
IGNORE_UNKNOWN = "ignore unknown keys"

RuntimeName = Literal["litert", "onnx", "executorch"]


def _inside(path: str) -> str:
    if not _PATH.search(path):
        raise ValueError(f"{shown(repr(path))} leaves the bundle or is no plain path")
    return path


BundlePath = Annotated[
    str, AfterValidator(_inside), Field(json_schema_extra={"pattern": _PATH.pattern})
]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
LayerIndex = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenText = Annotated[str, Field(max_length=1000)]
Texts = Annotated[dict[TokenText, TokenText], Field(max_length=200)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown(cls, values: Any, info: ValidationInfo) -> Any:
        """Unknown keys are a newer minor version's fields, or else misspelt ones."""
        if info.context != IGNORE_UNKNOWN or not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key in cls.model_fields}


class FileEntry(_Strict):
    """Size and checksum of one file; a truncated or altered one is refused."""

    size_bytes: Annotated[int, Field(ge=0, le=2**40)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SlidingEntry(_Strict):
    """Which of the layers that own KV rows use sliding-window attention."""

    window: Count  # KV rows that a token sees, its own included
    layers: Annotated[tuple[LayerIndex, ...], Field(strict=False, min_length=1, max_length=1000)]


class ModelEntry(_Strict):
    """The model's sizes."""

    vocab_size: Count
    hidden_size: Count
    num_layers: Count
    context_length: Count  # tokens of prompt and answer together
    has_drafter: bool
    # Written by some 1.0 exporters. Ignored: the graph files say which layers slide.
    sliding: Annotated[SlidingEntry | None, Field(exclude=True)] = None


class Tolerances(_Strict):
    """What `gemma-run check` requires; the recipe's file gives the reasons."""

    max_logit_error: Annotated[float, Field(gt=0, le=10)] = 1.0  # relative to the largest logit
    min_agreement: Share = 0.0  # share of the original's greedy tokens that are predicted
    min_acceptance_ratio: Share = 0.5  # accepted first drafts, relative to the original drafter's


class RuntimeEntry(_Strict):
    """One runtime's graphs."""

    model: BundlePath  # the file the runtime loads
    recipe: Annotated[str, Field(min_length=1, max_length=200)]
    tolerances: Tolerances


class TokenEntry(_Strict):
    """How text becomes tokens, and which tokens end an answer."""

    tokenizer: BundlePath
    chat_template: BundlePath | None
    bos_token_id: TokenId | None
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(strict=False, max_length=64)]
    # Name, such as "eos_token", -> text, for the chat template; None in some 1.0 manifests.
    special_tokens: Texts | None = None


class Manifest(_Strict):
    """The whole manifest, major version 1."""

    format_version: Literal[1] | Annotated[str, Field(pattern=f"^{_VERSION.pattern}$")]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    device: Annotated[str, Field(min_length=1, max_length=60)]  # the target it was exported for
    made_by: Texts  # tool -> version
    model: ModelEntry
    tokens: TokenEntry
    draft_length: Annotated[int, Field(ge=0, le=MAX_DRAFT_LENGTH)]  # default drafts per round
    runtimes: Annotated[dict[RuntimeName, RuntimeEntry], Field(min_length=1)]
    reference: BundlePath
    sources: Texts = {}  # "target", "drafter" -> repository@commit, if downloaded from a hub
    # pydantic's schema would allow keys that are no paths.
    files: Annotated[
        dict[BundlePath, FileEntry], Field(json_schema_extra={"additionalProperties": False})
    ]

    @field_validator("runtimes", mode="before")
    @classmethod
    def _drop_unknown_runtimes(cls, values: Any, info: ValidationInfo) -> Any:
        if info.context != IGNORE_UNKNOWN or not isinstance(values, dict):
            return values
        return {name: entry for name, entry in values.items() if name in get_args(RuntimeName)}

    @model_validator(mode="after")
    def _files_are_listed(self) -> Self:
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
    """Read and check a bundle's manifest, and the presence and size of every file it lists.

    Raises:
        RunError: with one line that names the bundle, what is wrong and what to do.
    """
    manifest = parse_manifest(bundle)
    for name, entry in manifest.files.items():
        _check_size(bundle, name, entry)
    return manifest


def parse_manifest(bundle: Path) -> Manifest:
    """Read and check a bundle's manifest alone, not the files it lists.

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
        values = read_object(path.read_bytes(), MAX_MANIFEST_BYTES)
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON ({error}); export again") from None
    return manifest_of(values, path)


def manifest_of(values: dict[str, Any], path: Path) -> Manifest:
    """Check a manifest's values.

    Args:
        values: the JSON object.
        path: of the manifest, for errors.

    Raises:
        RunError: naming the first wrong value.
    """
    found = values.get("format_version")
    minor = _minor_version(found)
    if minor is None:
        raise RunError(
            f"{path}: manifest format {shown(repr(found))}, this runtime reads {FORMAT_MAJOR}.x; "
            "install the matching gemma-run or export again"
        )
    try:
        context = IGNORE_UNKNOWN if minor > FORMAT_MINOR else None
        return Manifest.model_validate(values, context=context)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise RunError(
            f"{path}: {shown(where)}: {shown(first['msg'], 300)}; export again"
        ) from None


def _minor_version(found: object) -> int | None:
    """None for what is no version of this format."""
    if type(found) is int and found == FORMAT_MAJOR:
        return 0
    match = _VERSION.fullmatch(found) if isinstance(found, str) else None
    return int(match[1]) if match else None


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
    """The path of a file in the bundle; raises RunError if a link in it leads outside."""
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
    """The sha256 of a file, read in chunks; `progress` is called with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(done)
    return digest.hexdigest()


def file_entry(path: Path) -> FileEntry:
    """The size and checksum of a file."""
    return FileEntry(size_bytes=path.stat().st_size, sha256=checksum(path))


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write the manifest and flush it to the disk."""
    with (bundle / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
