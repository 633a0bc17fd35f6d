"""What gemma-run shows a person: tables on stdout, progress and summaries on stderr."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from runtime_py.adb.bench import DeviceBench
from runtime_py.bench.rows import Row, advice
from runtime_py.bundle.bundle import Bundle
from runtime_py.check.replay import CheckReport, Comparison
from runtime_py.terminal.console import MIN_WIDTH, Screen, new_table, say
from runtime_py.terminal.printable import shown

# Why an answer ended before the model did.
_CUT = {"length": "cut by --max-new-tokens", "context": "cut by the end of the context"}
# Of first drafts. Published pairs have 60 to 90 %; chance has next to none.
USELESS_SHARE, POOR_SHARE = 0.01, 0.1


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


def print_check(report: CheckReport, bundle: Bundle, runtime: str) -> None:
    """The check's table, then its verdict."""
    title = f"{bundle.manifest.name} on {runtime}: the bundle against the original"
    table = new_table(title, min_width=MIN_WIDTH)
    table.add_column("check")
    table.add_column("found", justify="right")
    table.add_column("first difference", justify="right")
    for name, comparison in (
        ("plain decoding = original", report.original),
        (f"speculative (K = {report.draft_length}) = plain", report.speculative),
    ):
        found = f"{comparison.num_equal} of {comparison.num_tokens} tokens"
        table.add_row(name, found, _part(comparison))
    ties = f"{report.num_ties} near ties not counted" if report.num_ties else ""
    table.add_row("same token, given the original's text", f"{report.agreement:.1%}", ties)
    table.add_row("largest logit difference / scale", f"{report.logit_error:.1e}", "")
    if report.draft_length:
        table.add_section()
        for position, (found_share, original) in enumerate(
            zip(report.acceptance, report.original_acceptance, strict=True), start=1
        ):
            table.add_row(
                f"drafts accepted up to position {position}",
                f"{found_share:.1%}",
                f"original {original:.1%}",
            )
        table.add_row("drafts accepted per round", f"{report.accepted_per_round:.2f}", "")
    Screen().print(table)
    for failure in report.failures:
        say(f"FAILED: {failure}")
    if report.passed:
        say(f"passed: {_verdict(report)}")
    if report.draft_length:
        for line in mtp_lines(report):
            say(line)


def mtp_lines(report: CheckReport) -> list[str]:
    """Whether drafting still pays, on the prompts that were recorded."""
    tokens = report.tokens_per_round
    lines = [
        f"MTP: a round of {report.draft_length} drafts makes {tokens:.2f} tokens on these prompts; "
        f"it pays where it costs less than {tokens:.2f} decodes"
    ]
    if report.round_cost is not None:
        verdict = "it pays" if report.round_cost < tokens else "plain decoding is faster"
        lines[0] += (
            f". Here it costs {report.round_cost:.2f}: {verdict}; gemma-run bench compares all "
            "draft lengths"
        )
    share = max(report.original_acceptance[0], report.acceptance[0])
    if share <= USELESS_SHARE:
        lines.append(
            f"WARNING: {share:.1%} of first drafts are right, of the original drafter's too: it "
            "does not predict this target (it is another model's, or untrained), and the export is "
            "true to it. It can only cost time: train one for this model, or export with "
            "--no-drafter"
        )
    elif share < POOR_SHARE:
        lines.append(
            f"WARNING: only {share:.1%} of first drafts are right, of the original drafter's too: "
            "it was made for another target, or for other prompts; it will only cost time"
        )
    return lines


def _verdict(report: CheckReport) -> str:
    if report.original.equal and report.speculative.equal:
        return "the bundle says what the original says, with the drafter and without"
    if report.original.equal:
        return "the bundle says what the original says; with the drafter it differs at near ties"
    same = "the same" if report.speculative.equal else "the same but for near ties"
    return f"as close to the original as the recipe promises; with and without the drafter {same}"


def _part(comparison: Comparison) -> str:
    if comparison.equal:
        return "none"
    first = comparison.partings[0]
    more = len(comparison.partings) - 1
    others = f", {more} more, smallest {comparison.smallest_margin:.1e}" if more else ""
    return f"prompt {first.prompt} token {first.token}, margin {first.margin:.1e}{others}"


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
