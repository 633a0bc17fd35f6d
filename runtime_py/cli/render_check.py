"""What gemma-run check shows a person: a verdict of at most six lines, and a table on request."""

from pathlib import Path
from shlex import quote

from rich.table import Table

from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import Manifest, RuntimeName
from runtime_py.check.replay import CheckReport, Comparison
from runtime_py.terminal.console import MIN_WIDTH, Screen, new_table, say
from runtime_py.terminal.printable import one_line

# Of first drafts. Published pairs have 60 to 90 %; chance has next to none.
USELESS_SHARE, POOR_SHARE = 0.01, 0.1
VERDICT_LINES = 5  # and one with the next command


def print_check(report: CheckReport, bundle: Bundle, runtime: RuntimeName, verbose: bool) -> None:
    """The verdict; before it, with `verbose`, the table of everything that was compared."""
    title = f"{bundle.manifest.name} on {runtime}"
    if verbose:
        Screen().print(_table(report, f"{title}: the bundle against the original"))
    lines = verdict(report, title, bundle.entry(runtime).recipe)
    if report.passed:
        lines.append(f"Next: {next_command(bundle.folder, bundle.manifest, runtime)}")
    elif not verbose:
        folder = quote(str(bundle.folder))
        lines.append(f"Next: gemma-run check {folder} --runtime {runtime} --verbose")
    for line in lines:
        say(one_line(line))


def verdict(report: CheckReport, title: str, recipe: str) -> list[str]:
    """At most VERDICT_LINES lines, what matters most first.

    Args:
        title: which bundle, on which runtime.
        recipe: the name of the recipe whose tolerances were applied.
    """
    if report.passed:
        same = "says what the original says"
        close = f"is as close to the original as recipe {recipe} promises"
        head = [f"passed: {title} {same if report.original.equal else close}"]
    else:
        head = [f"FAILED: {failure} ({title})" for failure in report.failures]
    lines = [
        *head,
        f"Agreement with the original: {report.agreement:.1%} of tokens{_ties(report)}; "
        f"first difference: {_first_difference(report.original)}",
        f"Speculative = plain decoding: {_num_equal(report.speculative)}; "
        f"first difference: {_first_difference(report.speculative)}",
        *_mtp(report),
    ]
    return lines[:VERDICT_LINES]


def _ties(report: CheckReport) -> str:
    return f" ({report.num_ties} near ties not counted)" if report.num_ties else ""


def _num_equal(comparison: Comparison) -> str:
    return f"{comparison.num_equal} of {comparison.num_tokens} tokens"


def _first_difference(comparison: Comparison) -> str:
    if comparison.equal:
        return "none"
    first = comparison.differences[0]
    return f"prompt {first.prompt}, token {first.token}"


def _mtp(report: CheckReport) -> list[str]:
    """Whether drafting pays on this device, for the prompts that were recorded."""
    if not report.draft_length:
        return ["MTP: the bundle has no drafter"]
    tokens, cost = report.tokens_per_round, report.round_cost
    makes = f"a round of {report.draft_length} drafts makes {tokens:.2f} tokens"
    if cost is None:
        line = f"MTP pays where a round costs less than {tokens:.2f} plain decodes: {makes}"
    elif cost < tokens:
        line = f"MTP pays here: {makes} and costs as much as {cost:.2f} plain decodes"
    else:
        line = (
            f"MTP with {report.draft_length} drafts does not pay here: a round makes {tokens:.2f} "
            f"tokens and costs as much as {cost:.2f} plain decodes; gemma-run bench compares all "
            "draft lengths"
        )
    return [line, *_warning(max(report.original_acceptance[0], report.acceptance[0]))]


def _warning(share: float) -> list[str]:
    """About a drafter that predicts little, though the export is true to it.

    Args:
        share: of first drafts that are right.
    """
    if share <= USELESS_SHARE:
        return [
            f"WARNING: the drafter does not predict this model ({share:.1%} of first drafts are "
            "right, in the original too): it is another model's, or untrained. Train one for this "
            "model, or export with --no-drafter"
        ]
    if share < POOR_SHARE:
        return [
            f"WARNING: the drafter predicts little ({share:.1%} of first drafts are right, in the "
            "original too): it was made for another model or for other prompts, and only costs time"
        ]
    return []


def next_command(folder: Path, manifest: Manifest, runtime: RuntimeName | None = None) -> str:
    """How to run a bundle; on one of its runtimes where it has several."""
    raw = "" if manifest.tokens.chat_template else " --raw"
    on = f" --runtime {runtime}" if runtime and len(manifest.runtimes) > 1 else ""
    return f'gemma-run generate {quote(str(folder))}{on}{raw} --prompt "…"'


def _table(report: CheckReport, title: str) -> Table:
    table = new_table(title, min_width=MIN_WIDTH)
    table.add_column("check")
    table.add_column("found", justify="right")
    table.add_column("first difference", justify="right")
    for name, comparison in (
        ("plain decoding = original", report.original),
        (f"speculative (K = {report.draft_length}) = plain", report.speculative),
    ):
        table.add_row(name, _num_equal(comparison), _differences(comparison))
    ties = f"{report.num_ties} near ties not counted" if report.num_ties else ""
    table.add_row("same token, given the original's text", f"{report.agreement:.1%}", ties)
    table.add_row("largest logit difference / scale", f"{report.logit_error:.1e}", "")
    if report.draft_length:
        table.add_section()
        shares = zip(report.acceptance, report.original_acceptance, strict=True)
        for position, (share, original) in enumerate(shares, start=1):
            what = f"drafts accepted up to position {position}"
            table.add_row(what, f"{share:.1%}", f"original {original:.1%}")
        table.add_row("drafts accepted per round", f"{report.accepted_per_round:.2f}", "")
        if report.round_cost is not None:
            table.add_row("cost of a round, in plain decodes", f"{report.round_cost:.2f}", "")
    return table


def _differences(comparison: Comparison) -> str:
    if comparison.equal:
        return "none"
    more = len(comparison.differences) - 1
    others = f", {more} more, smallest {comparison.smallest_margin:.1e}" if more else ""
    margin = comparison.differences[0].margin
    return f"{_first_difference(comparison)}, margin {margin:.1e}{others}"
