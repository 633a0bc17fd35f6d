"""Map and check safetensors files: nothing in them is trusted, nothing is unpickled."""

import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from exporter.errors import ExportError
from runtime_py.formats.strict_json import MAX_BYTES as MAX_JSON_BYTES
from runtime_py.formats.strict_json import read_object
from runtime_py.terminal.printable import shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
NEIGHBOURS = 1 << 16  # bytes
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
_NUMBERED_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)

FLOAT_TYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
INTEGER_TYPES = {"I32": torch.int32, "I64": torch.int64}
TYPES = FLOAT_TYPES | INTEGER_TYPES


class Stored(Protocol):
    """A tensor of a checkpoint, whatever its rows are computed from."""

    @property
    def path(self) -> Path: ...  # the file to name in an error
    @property
    def type_name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def num_rows(self) -> int: ...
    def rows(self, start: int, stop: int) -> Tensor: ...
    def release(self, start: int, stop: int) -> None: ...


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a mapped file; only requested rows are read."""

    path: Path
    mapped: mmap.mmap
    type_name: str  # as in the file; may be a type that we do not read
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    @property
    def num_rows(self) -> int:
        """A stack of matrices counts as one tall matrix; each number of a vector as a row."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 2 else self.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1, in the file's own type."""
        dtype = TYPES[self.type_name]
        tail = self.shape[-1:] if len(self.shape) > 1 else ()
        row = math.prod(tail)
        if start == stop or row == 0:
            return torch.empty((stop - start, *tail), dtype=dtype)
        offset = self.offset + start * row * dtype.itemsize
        if offset % dtype.itemsize:  # legal in the format, though writers align
            data: Any = bytearray(
                self.mapped[offset : offset + (stop - start) * row * dtype.itemsize]
            )
            offset = 0
        else:
            data = self.mapped
        flat = torch.frombuffer(data, dtype=dtype, count=(stop - start) * row, offset=offset)
        return flat.reshape(stop - start, *tail)

    def release(self, start: int, stop: int) -> None:
        """Drop rows that were read from memory; they can be read again.

        A mapped file's pages count as this process's memory while they are resident.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):  # not on Windows, where mapped pages are not counted
            return
        row = math.prod(self.shape) // max(1, self.num_rows) * TYPES[self.type_name].itemsize
        # With each page that is read, the kernel maps some of its neighbours.
        first = max(0, self.offset + start * row - NEIGHBOURS) // mmap.PAGESIZE * mmap.PAGESIZE
        last = min(len(self.mapped), self.offset + stop * row + NEIGHBOURS)
        self.mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ExportError(
                f"{path}: {path.stat().st_size} bytes, needed a JSON file of less than "
                f"{MAX_JSON_BYTES}; download the checkpoint again"
            )
        text = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({shown(error)})") from error
    return _json_object(text, str(path))


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder, by the name in its files."""
    tensors: dict[str, StoredTensor] = {}
    for shard in _shards(folder):
        for name, tensor in open_file(shard).items():
            if name in tensors:
                raise ExportError(
                    f"{shard}: tensor {shown(name)} is also in {tensors[name].path.name}, "
                    "needed it once; download the checkpoint again"
                )
            tensors[name] = tensor
    _check_index(folder, tensors)
    return tensors


def _shards(folder: Path) -> list[Path]:
    single = folder / SINGLE_FILE
    if single.is_file():
        return [single]
    if not (folder / INDEX_FILE).is_file():
        return find_shards(folder)
    shards = [folder / name for name in sorted(set(_weight_map(folder).values()))]
    for shard in shards:
        if not shard.is_file():
            raise ExportError(
                f"{folder / INDEX_FILE}: names {shown(shard.name)}, which is not in the folder; "
                "download the missing file"
            )
    return shards


def find_shards(folder: Path) -> list[Path]:
    """The shards of a folder without an index, from the numbers in their names.

    Raises:
        ExportError: if one is missing, or if they belong to two sets.
    """
    numbered = [_NUMBERED_SHARD.fullmatch(path.name) for path in folder.iterdir()]
    found = {match.string: int(match[2]) for match in numbered if match}
    if not found:
        return []
    total = max(found.values())
    wanted = [f"model-{number:05}-of-{total:05}.safetensors" for number in range(1, total + 1)]
    missing = [name for name in wanted if name not in found]
    extra = sorted(set(found) - set(wanted))
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} belongs to another set"
        raise ExportError(
            f"{folder}: no {INDEX_FILE}, and of {len(wanted)} shards {what} "
            f"({len(found)} are there); download the checkpoint again"
        )
    return [folder / name for name in wanted]


def _check_index(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    if (folder / SINGLE_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return
    weight_map = _weight_map(folder)
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise ExportError(
                f"{folder / INDEX_FILE}: says {shown(name)} is in {shown(shard)}, "
                "which does not hold it; download the checkpoint again"
            )
    for name, tensor in tensors.items():
        if name not in weight_map:
            raise ExportError(
                f"{folder / INDEX_FILE}: does not name {shown(name)}, which is in "
                f"{tensor.path.name}; download the index again"
            )


def _weight_map(folder: Path) -> dict[str, str]:
    index = folder / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ExportError(f"{index}: no weight_map of tensor names to files; download it again")
    for name, shard in weight_map.items():
        # A shard is a plain file name: a checkpoint must not point at files elsewhere.
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise ExportError(
                f"{index}: {shown(name)} is in {shown(shard)}, needed a file name inside the folder"
            )
    return weight_map


def open_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file, by its name in it."""
    mapped = _map(path)
    size = len(mapped)
    header_size = int.from_bytes(mapped[:8], "little")
    if header_size > min(size - 8, MAX_JSON_BYTES):
        raise ExportError(
            f"{path}: its header claims {header_size} bytes and the file has {size}: truncated or "
            "not a safetensors file; download it again"
        )
    header = _json_object(mapped[8 : 8 + header_size], f"{path}: header")
    header.pop("__metadata__", None)
    data = 8 + header_size
    tensors, spans = {}, []
    for name, entry in header.items():
        type_name, shape, (first, last) = _entry(entry, f"{path}: {shown(name)}")
        tensors[name] = StoredTensor(path, mapped, type_name, shape, data + first)
        spans.append((first, last, name))
    end = max((last for _, last, _ in spans), default=0)
    if end != size - data:
        state = "truncated" if end > size - data else "longer than its header says"
        raise ExportError(
            f"{path}: {state}: the header describes {data + end} bytes, the file has {size}; "
            "download it again"
        )
    _refuse_overlaps(path, sorted(spans))
    return tensors


def _refuse_overlaps(path: Path, spans: list[tuple[int, int, str]]) -> None:
    """Refuse overlaps and gaps: the format says that every byte belongs to one tensor."""
    end = 0
    for first, last, name in spans:
        if first != end:
            raise ExportError(
                f"{path}: {shown(name)} begins at byte {first} of the data and the tensor before "
                f"it ends at {end}; download it again"
            )
        end = last


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size >= 8:
                # Copy on write: torch wants a writable buffer, and the file must not change.
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise ExportError(f"{path}: cannot be opened ({shown(error)})") from error
    raise ExportError(f"{path}: {size} bytes, needed a safetensors header; download the file again")


def _entry(entry: object, where: str) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """One header entry's type name, shape and data offsets, checked against each other."""
    try:
        if not isinstance(entry, dict):
            raise TypeError("not an object")
        type_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(type_name, str) or not all(map(_is_count, (*shape, *offsets))):
            raise TypeError("wrong types")
        first, last = offsets
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{where}: corrupt safetensors header entry; download it again"
        ) from error
    dtype = TYPES.get(type_name)
    length = last - first
    if length < 0 or (dtype is not None and length != math.prod(shape) * dtype.itemsize):
        raise ExportError(
            f"{where}: {length} bytes for {shown(type_name)} of shape {shown(list(shape))}; "
            "download it again"
        )
    return type_name, tuple(shape), (first, last)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _json_object(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        return read_object(text, MAX_JSON_BYTES)
    except ValueError as error:
        raise ExportError(
            f"{where}: not a JSON object ({shown(error)}); correct it or download it again"
        ) from error
