"""Progress and the summary of an answer, both on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from runtime_py import Result
from runtime_py.terminal.console import Screen, say
from runtime_py.terminal.printable import shown

# Why an answer ended before the model did.
_CUT = {"length": "cut by --max-new-tokens", "context": "cut by the end of the context"}


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


def print_summary(result: Result) -> None:
    """One line of figures on stderr."""
    stats = result.stats
    parts = [
        f"{stats.num_prompt_tokens} prompt tokens in {stats.prefill_s:.2f} s",
        f"{len(result.token_ids)} tokens",
    ]
    if stats.tokens_per_s is not None:
        parts.append(f"{stats.tokens_per_s:.1f} tokens/s")
    if stats.accepted_per_round is not None:
        parts.append(f"{stats.accepted_per_round:.2f} drafts accepted per round")
    if result.finish_reason in _CUT:
        parts.append(_CUT[result.finish_reason])
    if result.ends_in_thought:
        parts.append("in the middle of a thought, which is not shown")
    say(f"[{' · '.join(parts)}]", err=True)
