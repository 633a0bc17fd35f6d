"""What gemma-run inspect shows a person."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from runtime_py.inspection import Findings
from runtime_py.inspection.findings import DRAFTER_PREFIX, Constant, Signature, Value, Weight
from runtime_py.inspection.memory import memory_text
from runtime_py.terminal.console import Screen, new_table

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_KV_VALUE = re.compile(r"(kv_cache_[kv]_|past_key_values\.|present\.)\d+(\.key|\.value)?")


def print_findings(found: Findings, title: str, show_all: bool) -> None:
    """Tables of weights, sizes, signatures and memory; `show_all` folds nothing."""
    # Names come from the files: they are no markup.
    console = Screen()
    console.print(_weights(found, title, show_all))
    console.print(_parts(found))
    console.print(_signatures(found.signatures, show_all))
    console.print(_sections(found))
    console.print(_memory(found))
    console.print(
        f"KV: {', '.join(found.kv_types)}, {found.kv_bytes_per_token} bytes per token, "
        f"{_megabytes(found.kv_bytes)} MB for the whole context, at most "
        f"{_megabytes(found.kv_resident_bytes)} MB of it in memory",
        soft_wrap=True,
    )
    if show_all:
        console.print(_constants(found.constants))
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)


@dataclass
class _Fold:
    """Matrices that differ in nothing but the number of their layer."""

    first: Weight
    layers: list[int] = field(default_factory=list)
    count: int = 0
    size_bytes: int = 0


def _weights(found: Findings, title: str, show_all: bool) -> Table:
    table = new_table(title)
    table.add_column("matrix", overflow="fold")
    table.add_column("type")
    table.add_column("shape")
    table.add_column("MB", justify="right")
    table.add_column("read by", overflow="fold")
    for fold in _folded(sorted(found.weights, key=_order), show_all):
        weight = fold.first
        readers = weight.used_by if show_all else weight.uses
        table.add_row(
            _NUMBER.sub(lambda _: _ranges(fold.layers), weight.name, count=1),  # noqa: B023
            type_name(weight),
            " x ".join(map(str, weight.shape)),
            _megabytes(fold.size_bytes),
            ", ".join(readers),
        )
    return table


def type_name(weight: Weight) -> str:
    """int4, or int4 in groups of 32."""
    groups = f" / {weight.group_size}" if weight.group_size else ""
    return f"{weight.dtype}{groups}"


def _order(weight: Weight) -> tuple[bool, bool, list[str]]:
    """Tables first, then layer by layer; the drafter after the target."""
    parts = [part.zfill(6) if part.isdecimal() else part for part in weight.name.split(".")]
    return weight.name.startswith(DRAFTER_PREFIX), "layers." in weight.name, parts


def _folded(weights: Iterable[Weight], show_all: bool) -> Iterator[_Fold]:
    folds: dict[object, _Fold] = {}
    for weight in weights:
        alike = (_NUMBER.sub("*", weight.name, count=1), type_name(weight), weight.shape)
        key = (weight.name, len(folds)) if show_all else (*alike, weight.uses)
        fold = folds.setdefault(key, _Fold(weight))
        fold.layers += [int(number) for number in _NUMBER.findall(weight.name)[:1]]
        fold.size_bytes += weight.size_bytes
    yield from folds.values()


def _ranges(numbers: Sequence[int]) -> str:
    """0-3,7 of [0, 1, 2, 3, 7]."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)


def _parts(found: Findings) -> Table:
    table = new_table(f"{_megabytes(found.size_bytes)} MB by part")
    table.add_column("part")
    table.add_column("MB", justify="right")
    table.add_column("share", justify="right")
    for part, size_bytes in found.parts.items():
        table.add_row(part, _megabytes(size_bytes), f"{size_bytes / found.size_bytes:.1%}")
    return table


def _signatures(signatures: Sequence[Signature], show_all: bool) -> Table:
    table = new_table("signatures")
    for column in ("name", "inputs", "outputs"):
        table.add_column(column, overflow="fold")
    for signature in signatures:
        table.add_row(
            signature.name,
            _values(signature.inputs, show_all),
            _values(signature.outputs, show_all),
        )
    return table


def _values(values: Sequence[Value], show_all: bool) -> str:
    kv = [] if show_all else [value for value in values if _KV_VALUE.fullmatch(value.name)]
    lines = [f"{value.name} {value.dtype} {_shape(value)}" for value in values if value not in kv]
    return "\n".join((*lines, f"{len(kv)} KV buffers") if kv else lines)


def _shape(value: Value) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in value.shape)}]"


def _memory(found: Findings) -> Table:
    table = new_table(f"{memory_text(found.memory_bytes)} of memory while it generates")
    table.add_column("what")
    table.add_column("MB", justify="right")
    table.add_column("held")
    table.add_column("known from")
    for item in found.memory:
        known = "the file" if item.said_by == "file" else "measured factors"
        table.add_row(item.what, _megabytes(item.size_bytes), item.holding, known)
    return table


def _constants(constants: Sequence[Constant]) -> Table:
    table = new_table("vectors and other constants")
    for column in ("name", "type", "shape"):
        table.add_column(column, overflow="fold")
    table.add_column("bytes", justify="right")
    for constant in constants:
        shape = " x ".join(map(str, constant.shape))
        table.add_row(constant.name, constant.dtype, shape, str(constant.size_bytes))
    return table


def _sections(found: Findings) -> Table:
    table = new_table("sections")
    for column in ("file", "section"):
        table.add_column(column, overflow="fold")
    for column in ("first byte", "bytes"):
        table.add_column(column, justify="right")
    for section in found.sections:
        table.add_row(section.file, section.name, str(section.begin), str(section.size_bytes))
    return table


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f}"
