"""What a bench found: a row for each candidate, and what to use on this device."""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from runtime_py.bench.interval import LEVEL, MIN_TURNS, Interval, ratio_interval
from runtime_py.bench.measure import Contest, Run

Row = Mapping[str, Any]


def bench_rows(found: Contest) -> list[dict[str, Any]]:
    """One row per candidate: median speed, ratio to plain decoding, and mean figures."""
    plain = [run.tokens_per_s for run in found.runs[0]]
    rows: list[dict[str, Any]] = []
    for length, runs in found.runs.items():
        num_rounds = max(1, sum(run.num_rounds for run in runs))
        rows.append(
            {
                "who": f"K = {length}",
                "draft_length": length,
                **_speed([run.tokens_per_s for run in runs], plain),
                "drafted_per_round": num_drafted(runs) / num_rounds,
                "accepted_per_round": sum(run.num_accepted for run in runs) / num_rounds,
                "stage_ms": _stage_ms(runs),
                "ms_per_token": _ms_per_token(runs),
                "outside_share": mean(run.outside_share for run in runs),
                "accepted_rounds": _histogram(runs),
            }
        )
    rows += [{"who": name, **_speed(speeds, plain)} for name, speeds in found.others.items()]
    return rows


def _speed(speeds: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """A candidate's speed, and its ratio to plain decoding in the same turns."""
    return {
        "tokens_per_s": median(speeds),
        "all_tokens_per_s": list(speeds),
        "speedup": median(one / other for one, other in zip(speeds, plain, strict=True)),
        "speedup_interval": ratio_interval(speeds, plain),
    }


def num_drafted(runs: Sequence[Run]) -> int:
    """How many drafts were verified."""
    return sum(step.num_drafted for run in runs for step in run.steps)


def _stage_ms(runs: Sequence[Run]) -> dict[str, float]:
    stages = sorted({stage for run in runs for stage in run.stage_ms})
    return {
        stage: mean(run.stage_ms[stage] for run in runs if stage in run.stage_ms)
        for stage in stages
    }


def _ms_per_token(runs: Sequence[Run]) -> dict[str, float]:
    """Milliseconds per emitted token by stage, without prefill."""
    num_tokens = sum(run.num_tokens for run in runs)
    spent = {"draft": 0.0, "decode": 0.0, "verify": 0.0}
    for run in runs:
        for stage, seconds in run.stage_s.items():
            if stage != "prefill":
                spent[stage.split()[0]] += seconds
    spent["outside the graphs"] = max(sum(run.seconds for run in runs) - sum(spent.values()), 0.0)
    return {stage: 1000 * seconds / num_tokens for stage, seconds in spent.items()}


def _histogram(runs: Sequence[Run]) -> list[int]:
    """Rounds with drafts, counted by how many were accepted."""
    rounds = [step.num_accepted for run in runs for step in run.steps if step.num_drafted]
    return [rounds.count(number) for number in range(max(rounds, default=-1) + 1)]


def acceptance_by_position(runs: Sequence[Run]) -> list[float]:
    """Share of drafts accepted at each position, among those whose predecessors were accepted."""
    steps = [step for run in runs for step in run.steps]
    shares = []
    for position in range(max((step.num_drafted for step in steps), default=0)):
        judged = [s for s in steps if s.num_drafted > position and s.num_accepted >= position]
        if judged:
            shares.append(mean(step.num_accepted > position for step in judged))
    return shares


def advice(rows: Sequence[Row]) -> str:
    """One sentence: what to use on this device. It claims no difference that may be chance."""
    ours = {row["draft_length"]: row for row in rows if "draft_length" in row}
    best = max(ours.values(), key=lambda row: float(row["speedup"]))
    as_good = [length for length, row in ours.items() if not _is_slower(row, best)]
    use = next((length for length in ("auto", 0) if length in as_good), best["draft_length"])
    note = {"auto": ", the default", 0: ", plain decoding"}.get(use, "")
    parts = [f"Use --draft-length {use}{note}"]
    if 0 not in as_good:
        parts[0] += f": {ours[use]['speedup']:.2f} x plain decoding ({shown_interval(ours[use])})"
    if len(as_good) > 1:
        parts.append(f"no measurable difference: {_listed(as_good)}")
    if "auto" in ours and "auto" not in as_good:
        parts.append(f"auto is slower: {ours['auto']['speedup']:.2f} x")
    if len(best["all_tokens_per_s"]) < MIN_TURNS:
        parts.append("too few runs to tell, raise --repeats")
    return "; ".join(parts)


def shown_interval(row: Row) -> str:
    """The interval of a row's ratio to plain decoding, in words."""
    interval: Interval | None = row["speedup_interval"]
    if interval is None:
        return "too few runs for an interval"
    return f"{LEVEL:.0%} interval {interval[0]:.2f} to {interval[1]:.2f}"


def _is_slower(row: Row, best: Row) -> bool:
    """Whether the row is slower beyond its interval."""
    interval = ratio_interval(row["all_tokens_per_s"], best["all_tokens_per_s"])
    return interval is not None and interval[1] < 1


def _listed(lengths: Sequence[object]) -> str:
    *others, last = map(str, lengths)
    return f"{', '.join(others)} and {last}"
