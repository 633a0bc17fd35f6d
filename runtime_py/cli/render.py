"""What gemma-run shows a person: tables on stdout, progress and summaries on stderr."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from runtime_py.adb.bench import DeviceBench
from runtime_py.bench.rows import Row, advice
from runtime_py.bundle.bundle import Bundle
from runtime_py.terminal.console import Screen, new_table, say
from runtime_py.terminal.printable import shown

# Why an answer ended before the model did.
_CUT = {"length": "cut by --max-new-tokens", "context": "cut by the end of the context"}


class Answer(Protocol):
    """The figures of one generation."""

    prompt_ids: list[int]
    prefill_s: float
    ends_in_thought: bool

    @property
    def finish_reason(self) -> str | None: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def tokens_per_s(self) -> float | None: ...
    @property
    def accepted_per_round(self) -> float | None: ...


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields the function that sets how much is done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    console = Screen(stderr=True)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    try:
        bar.start()
        task = bar.add_task(shown(title), total=total)
        yield lambda done: bar.update(task, completed=done)
    finally:
        try:
            bar.stop()
        finally:
            console.show_cursor(True)  # a signal may have ended stop() before it did


def print_summary(answer: Answer) -> None:
    """One line of figures on stderr."""
    parts = [
        f"{len(answer.prompt_ids)} prompt tokens in {answer.prefill_s:.2f} s",
        f"{len(answer.token_ids)} tokens",
    ]
    if answer.tokens_per_s is not None:
        parts.append(f"{answer.tokens_per_s:.1f} tokens/s")
    if answer.accepted_per_round is not None:
        parts.append(f"{answer.accepted_per_round:.2f} drafts accepted per round")
    if answer.finish_reason in _CUT:
        parts.append(_CUT[answer.finish_reason])
    if answer.ends_in_thought:
        parts.append("in the middle of a thought, which is not shown")
    say(f"[{' · '.join(parts)}]", err=True)


def print_bench(rows: Sequence[Row], bundle: Bundle, runtime: str) -> None:
    """The table of draft lengths and the line that says what to use."""
    table = new_table(f"{bundle.manifest.name} on {runtime}")
    table.add_column("")
    for column in ("tokens/s", "x plain", "drafts / round", "accepted / round", "outside graphs"):
        table.add_column(column, justify="right")
    table.add_column("ms per call")
    for row in rows:
        table.add_row(
            row["who"],
            f"{row['tokens_per_s']:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['drafted_per_round']:.2f}" if row.get("draft_length") else "",
            f"{row['accepted_per_round']:.2f}" if row.get("draft_length") else "",
            f"{row['outside_share']:.1%}" if "outside_share" in row else "",
            "  ".join(f"{stage} {ms:.2f}" for stage, ms in _main_stages(row).items()),
        )
    Screen().print(table)
    say(advice(rows))


def print_device_bench(found: DeviceBench, bundle: Bundle) -> None:
    """The official runtime's two lines, on a device."""
    table = new_table(f"{bundle.manifest.name}, LiteRT-LM's own runtime on {found.device}")
    for column in ("", "tokens/s", "x plain", "drafts accepted"):
        table.add_column(column, justify="right" if column else "left")
    plain = found.tokens_per_s(mtp=False)
    for who, mtp in (("plain", False), ("MTP", True)):
        speed = found.tokens_per_s(mtp=mtp)
        if speed is None:
            continue
        rates = [run.success_rate for run in found.runs if run.mtp == mtp and run.success_rate]
        table.add_row(
            who,
            f"{speed:.1f}",
            f"{speed / plain:.2f}" if plain else "",
            f"{median(rates):.0%}" if rates else "",
        )
    Screen().print(table)


def _main_stages(row: Row) -> dict[str, float]:
    """The stages of a full round; the last round of a text is shorter and left out."""
    length = row.get("draft_length")
    if length == "auto":
        return {}
    shown = ("draft", f"verify {length + 1}") if length else ("decode",)
    return {stage: ms for stage, ms in row.get("stage_ms", {}).items() if stage in shown}
