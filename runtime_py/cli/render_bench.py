"""What gemma-run bench shows a person."""

from collections.abc import Sequence
from statistics import median

from runtime_py.adb.bench import DeviceBench
from runtime_py.bench.interval import MIN_TURNS, Interval, ratio_interval
from runtime_py.bench.rows import Row, advice
from runtime_py.bundle.bundle import Bundle
from runtime_py.terminal.console import Screen, new_table, say


def print_bench(rows: Sequence[Row], bundle: Bundle, runtime: str) -> None:
    """The table of draft lengths and the line that says what to use."""
    table = new_table(f"{bundle.manifest.name} on {runtime}")
    table.add_column("")
    for column in ("tokens/s", "x plain", "interval", "accepted / round", "outside graphs"):
        table.add_column(column, justify="right")
    table.add_column("ms per call")
    for row in rows:
        table.add_row(
            row["who"],
            f"{row['tokens_per_s']:.1f}",
            f"{row['speedup']:.2f}",
            _interval(row),
            f"{row['accepted_per_round']:.2f} of {row['drafted_per_round']:.2f}"
            if row.get("draft_length")
            else "",
            f"{row['outside_share']:.1%}" if "outside_share" in row else "",
            "  ".join(f"{stage} {ms:.2f}" for stage, ms in _main_stages(row).items()),
        )
    Screen().print(table)
    say(advice(rows))


def _interval(row: Row) -> str:
    return "" if row.get("draft_length") == 0 else _range(row["speedup_interval"])


def _range(interval: Interval | None) -> str:
    return "" if interval is None else "{:.2f}-{:.2f}".format(*interval)


def print_device_bench(found: DeviceBench, bundle: Bundle) -> None:
    """The official runtime's two lines, on a device."""
    table = new_table(f"{bundle.manifest.name}, LiteRT-LM's own runtime on {found.device}")
    for column in ("", "tokens/s", "x plain", "interval", "drafts accepted"):
        table.add_column(column, justify="right" if column else "left")
    plain = found.tokens_per_s(mtp=False)
    speeds = {mtp: [r.tokens_per_s for r in found.runs if r.mtp == mtp] for mtp in (False, True)}
    interval = ratio_interval(speeds[True], speeds[False]) if speeds[True] else None
    for who, mtp in (("plain", False), ("MTP", True)):
        speed = found.tokens_per_s(mtp=mtp)
        if speed is None:
            continue
        rates = [run.success_rate for run in found.runs if run.mtp == mtp and run.success_rate]
        table.add_row(
            who,
            f"{speed:.1f}",
            f"{speed / plain:.2f}" if plain else "",
            _range(interval) if mtp else "",
            f"{median(rates):.0%}" if rates else "",
        )
    Screen().print(table)
    if speeds[True] and interval is None:
        say(
            f"Too few runs to tell MTP from plain decoding; --repeats {MIN_TURNS} gives an interval"
        )


def _main_stages(row: Row) -> dict[str, float]:
    """The stages of a full round; the last round of a text is shorter and left out."""
    length = row.get("draft_length")
    if length == "auto":
        return {}
    shown = ("draft", f"verify {length + 1}") if length else ("decode",)
    return {stage: ms for stage, ms in row.get("stage_ms", {}).items() if stage in shown}
