"""What gemma-run inspect shows a person."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from runtime_py.inspection import Findings
from runtime_py.inspection.findings import DRAFTER_PREFIX, Constant, Signature, Value, Weight
from runtime_py.inspection.memory import memory_text
from runtime_py.terminal.console import Screen, new_table
from runtime_py.terminal.printable import one_line


def print_findings(found: Findings, title: str, show_all: bool) -> None:
    """Sizes, memory and types; with `show_all`, also every tensor, signature and section."""
    # Names come from the files: they are no markup.
    console = Screen()
    for line in (title, *summary(found)):
        console.print(one_line(line), soft_wrap=True)
    console.print(_memory(found))
    console.print(_parts(found))
    if show_all:
        console.print(_weights(found.weights))
        console.print(_constants(found.constants))
        console.print(_signatures(found.signatures))
        console.print(_sections(found))
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if not show_all:
        console.print("--all lists every matrix, constant, signature and section", soft_wrap=True)


def summary(found: Findings) -> list[str]:
    """What a device has to hold, one line each."""
    files = (f"{name} {_megabytes(size_bytes)} MB" for name, size_bytes in found.files.items())
    resident = ""
    if found.kv_resident_bytes < found.kv_bytes:
        resident = f", of which at most {_megabytes(found.kv_resident_bytes)} MB are in memory"
    return [
        f"on disk: {_megabytes(found.size_bytes)} MB ({', '.join(files)})",
        f"memory while it generates: {memory_text(found.memory_bytes)}",
        f"KV rows: {', '.join(found.kv_types)}, {found.kv_bytes_per_token} bytes per token; "
        f"{_megabytes(found.kv_bytes)} MB for the whole context{resident}",
        f"graphs: {', '.join(signature.name for signature in found.signatures)}",
    ]


def _parts(found: Findings) -> Table:
    table = new_table("files by part and type")
    table.add_column("part")
    table.add_column("type")
    for column in ("matrices", "MB", "share"):
        table.add_column(column, justify="right")
    for part, size_bytes in found.parts.items():
        weights = [weight for weight in found.weights if weight.part == part]
        for kind in sorted({type_name(weight) for weight in weights}):
            alike = [weight for weight in weights if type_name(weight) == kind]
            stored = sum(weight.size_bytes for weight in alike)
            table.add_row(part, kind, str(len(alike)), *_size(stored, found))
        if not weights:
            table.add_row(part, "", "", *_size(size_bytes, found))
    return table


def _size(size_bytes: int, found: Findings) -> tuple[str, str]:
    return _megabytes(size_bytes), f"{size_bytes / found.size_bytes:.1%}"


def _weights(weights: Iterable[Weight]) -> Table:
    table = new_table("matrices")
    table.add_column("matrix", overflow="fold")
    table.add_column("type")
    table.add_column("shape")
    table.add_column("MB", justify="right")
    table.add_column("read by", overflow="fold")
    for weight in sorted(weights, key=_order):
        table.add_row(
            weight.name,
            type_name(weight),
            " x ".join(map(str, weight.shape)),
            _megabytes(weight.size_bytes),
            ", ".join(weight.used_by),
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


def _signatures(signatures: Sequence[Signature]) -> Table:
    table = new_table("signatures")
    for column in ("name", "inputs", "outputs"):
        table.add_column(column, overflow="fold")
    for signature in signatures:
        table.add_row(signature.name, _values(signature.inputs), _values(signature.outputs))
    return table


def _values(values: Sequence[Value]) -> str:
    return "\n".join(f"{value.name} {value.dtype} {_shape(value)}" for value in values)


def _shape(value: Value) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in value.shape)}]"


def _memory(found: Findings) -> Table:
    table = new_table("memory while it generates")
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
