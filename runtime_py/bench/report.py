"""The report of `gemma-run bench`: one HTML file that needs nothing else."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from runtime_py.backends import SessionOptions, default_num_threads
from runtime_py.bench.charts import stacked_bars, steps
from runtime_py.bench.interval import LEVEL
from runtime_py.bench.measure import Contest, Effort, Run
from runtime_py.bench.rows import Row, acceptance_by_position, advice, bench_rows
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.errors import RunError

_MOST_PANELS = 6  # prompts whose draft lengths are drawn

_PAGE = jinja2.Environment(autoescape=True).from_string(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { --paper: #fff; --ink: #1d232b; --faint: #d7dce2; --soft: #5d6875;
  --c0: #2f6fde; --c1: #e08a1e; --c2: #2a9d74; --c3: #98a2ae; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6eaef; --faint: #333b45;
  --soft: #9aa5b1; --c0: #6ea0ff; --c1: #f0ab4e; --c2: #53c79c; --c3: #7b8794; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin-bottom: .2rem; overflow-wrap: anywhere }
h2 { font-size: 1rem; margin: 2rem 0 .2rem }
p { margin: .3rem 0 } .soft { color: var(--soft); font-size: .9rem }
.advice { border-left: 4px solid var(--c0); padding: .5rem .8rem; margin: 1rem 0; font-weight: 600 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; vertical-align: top; padding: .25rem .4rem;
  border-bottom: 1px solid var(--faint) }
th { font-weight: 600; font-size: .85rem }
th:first-child, td:first-child { text-align: left }
td small { display: block; color: var(--soft); white-space: nowrap }
svg { width: 100%; max-width: 34rem; height: auto }
svg text { fill: var(--soft); font-size: 13px }
@media (max-width: 30rem) { table { font-size: .85rem } th { font-size: .75rem }
  th, td { padding: .25rem .2rem } }
.grid { stroke: var(--faint); fill: none } .range { stroke: var(--ink); fill: none }
.line { stroke: var(--c0); fill: none; stroke-width: 2 }
.s0 { fill: var(--c0); background: var(--c0) } .s1 { fill: var(--c1); background: var(--c1) }
.s2 { fill: var(--c2); background: var(--c2) } .s3 { fill: var(--c3); background: var(--c3) }
.legend span { margin-right: 1rem; font-size: .85rem; color: var(--soft) }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em }
</style></head><body>
<h1>{{ title }}</h1>
<p class="soft">{{ about }}</p>
<p class="advice">{{ advice }}</p>
<table><thead><tr><th></th><th>tokens/s</th><th>x plain</th><th>drafts accepted</th>
<th>outside graphs</th></tr></thead><tbody>
{% for row in rows %}<tr><td>{{ row.who }}</td><td>{{ "%.1f"|format(row.tokens_per_s) }}</td>
<td>{{ "%.2f"|format(row.speedup) }}{% if row.speedup_interval and row.draft_length != 0 %}
<small>{{ "%.2f-%.2f"|format(*row.speedup_interval) }}</small>{% endif %}</td>
<td>{% if row.draft_length %}{{ "%.2f"|format(row.accepted_per_round) }} of
{{ "%.2f"|format(row.drafted_per_round) }}{% endif %}</td>
<td>{% if row.outside_share is defined %}{{ "%.1f"|format(100 * row.outside_share) }} %{% endif %}
</td></tr>{% endfor %}</tbody></table>
<p class="soft">Below a ratio to plain decoding: its {{ level }} confidence interval.</p>
{% for chart in charts %}<h2>{{ chart.title }}</h2><p class="soft">{{ chart.about }}</p>
{{ chart.svg|safe }}{% endfor %}
</body></html>
"""
)


def check_writable(path: Path) -> None:
    """Refuse a report file that cannot be written, before anything is measured.

    Raises:
        RunError: if no file can be written there.
    """
    try:
        was_there = path.exists()
        path.open("ab").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        raise RunError(_unwritable(path, error)) from None


def _unwritable(path: Path, error: OSError) -> str:
    return f"{path}: {error.strerror}; name a file in a folder that is there and may be written"


def write_report(
    path: Path,
    bundle: Bundle,
    runtime: RuntimeName,
    settings: tuple[SessionOptions, Effort],
    found: Contest,
) -> None:
    """Write the page.

    Raises:
        RunError: if it cannot be written.
    """
    rows = bench_rows(found)
    page = _PAGE.render(
        title=f"{bundle.manifest.name} on {runtime}",
        about=_about(bundle.entry(runtime).recipe, *settings),
        advice=advice(rows),
        rows=rows,
        level=f"{LEVEL:.0%}",
        charts=_charts(rows, found),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(_unwritable(path, error)) from None


def _about(recipe: str, options: SessionOptions, effort: Effort) -> str:
    threads = options.num_threads or default_num_threads()
    return (
        f"{platform.machine()}, {platform.system()}, {threads} threads; recipe {recipe}; "
        f"{effort.num_repeats} runs of {effort.max_new_tokens} tokens on each of "
        f"{effort.num_prompts} prompts, the candidates taking turns."
    )


def _charts(rows: Sequence[Row], found: Contest) -> list[Mapping[str, str]]:
    ours = [row for row in rows if "draft_length" in row]
    charts: list[Mapping[str, str]] = [
        {
            "title": "Tokens per second",
            "about": "The median of all runs; the line goes from the slowest run to the fastest.",
            "svg": stacked_bars(
                {row["who"]: {"speed": row["tokens_per_s"]} for row in rows},
                "tokens/s",
                {row["who"]: _range(row["all_tokens_per_s"]) for row in rows},
            ),
        },
        {
            "title": "Where the time of a token goes",
            "about": "Milliseconds per emitted token: inside the graphs and outside of them.",
            "svg": stacked_bars({row["who"]: row["ms_per_token"] for row in ours}, "ms"),
        },
    ]
    fixed = [length for length in found.runs if isinstance(length, int) and length]
    if fixed:
        charts += _acceptance(max(fixed), found.runs[max(fixed)])
    if "auto" in found.runs:
        charts.append(_over_time(found.runs["auto"]))
    return charts


def _acceptance(length: int, runs: Sequence[Run]) -> list[Mapping[str, str]]:
    positions = {
        str(position): {"accepted": 100 * share}
        for position, share in enumerate(acceptance_by_position(runs), start=1)
    }
    full = [step.num_accepted for run in runs for step in run.steps if step.num_drafted == length]
    counts = {
        str(number): {"rounds": 100 * full.count(number) / len(full)}
        for number in range(length + 1)
        if full
    }
    return [
        {
            "title": "Acceptance by position",
            "about": f"Rounds of K = {length}: the share of drafts that were accepted, of those "
            "whose predecessors were.",
            "svg": stacked_bars(positions, "%"),
        },
        {
            "title": "Accepted drafts per round",
            "about": f"Share of the rounds of K = {length} by how many drafts were accepted.",
            "svg": stacked_bars(counts, "%"),
        },
    ]


def _over_time(runs: Sequence[Run]) -> Mapping[str, str]:
    lines = {
        f"generation {number}": [
            step.num_drafted for step in run.steps for _ in range(len(step.token_ids))
        ]
        for number, run in enumerate(runs[-_MOST_PANELS:], start=1)
    }
    return {
        "title": "K over time",
        "about": "What auto chose for each token, one line for each of its last generations. Each "
        "starts without what earlier ones learnt.",
        "svg": steps(lines, "token", "drafts in the token's round"),
    }


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
