"""What a contest of draft lengths comes to: a row for each contestant, and what to use here."""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from runtime_py.bench.measure import Contest, Run, median_tokens_per_s

Row = Mapping[str, Any]
AS_GOOD = 0.95  # of the best fixed length: auto need not be told anything


def bench_rows(found: Contest) -> list[dict[str, Any]]:
    """One row per contestant: the middle run's speed, and mean figures of all."""
    plain = median_tokens_per_s(found.runs[0])
    rows: list[dict[str, Any]] = []
    for length, runs in found.runs.items():
        speed = median_tokens_per_s(runs)
        num_rounds = max(1, sum(run.num_rounds for run in runs))
        rows.append(
            {
                "who": f"K = {length}",
                "draft_length": length,
                "tokens_per_s": speed,
                "all_tokens_per_s": [run.tokens_per_s for run in runs],
                "speedup": speed / plain,
                "drafted_per_round": num_drafted(runs) / num_rounds,
                "accepted_per_round": sum(run.num_accepted for run in runs) / num_rounds,
                "stage_ms": _stage_ms(runs),
                "ms_per_token": _ms_per_token(runs),
                "outside_share": mean(run.outside_share for run in runs),
                "accepted_rounds": _histogram(runs),
            }
        )
    for name, speeds in found.others.items():
        speed = median(speeds)
        rows.append(
            {
                "who": name,
                "tokens_per_s": speed,
                "all_tokens_per_s": speeds,
                "speedup": speed / plain,
            }
        )
    return rows


def num_drafted(runs: Sequence[Run]) -> int:
    """Drafts that were verified."""
    return sum(step.num_drafted for run in runs for step in run.steps)


def _stage_ms(runs: Sequence[Run]) -> dict[str, float]:
    stages = sorted({stage for run in runs for stage in run.stage_ms})
    return {
        stage: mean(run.stage_ms[stage] for run in runs if stage in run.stage_ms)
        for stage in stages
    }


def _ms_per_token(runs: Sequence[Run]) -> dict[str, float]:
    """Milliseconds of an emitted token by where they went, prefill left out."""
    num_tokens = sum(run.num_tokens for run in runs)
    spent = {"draft": 0.0, "decode": 0.0, "verify": 0.0}
    for run in runs:
        for stage, seconds in run.stage_s.items():
            if stage != "prefill":
                spent[stage.split()[0]] += seconds
    spent["outside the graphs"] = max(sum(run.seconds for run in runs) - sum(spent.values()), 0.0)
    return {stage: 1000 * seconds / num_tokens for stage, seconds in spent.items()}


def _histogram(runs: Sequence[Run]) -> list[int]:
    """Rounds by how many of their drafts were accepted; those without drafts left out."""
    rounds = [step.num_accepted for run in runs for step in run.steps if step.num_drafted]
    return [rounds.count(number) for number in range(max(rounds, default=-1) + 1)]


def acceptance_by_position(runs: Sequence[Run]) -> list[float]:
    """Of the drafts at each position that came to be judged, the share that was accepted."""
    steps = [step for run in runs for step in run.steps]
    shares = []
    for position in range(max((step.num_drafted for step in steps), default=0)):
        judged = [s for s in steps if s.num_drafted > position and s.num_accepted >= position]
        if judged:
            shares.append(mean(step.num_accepted > position for step in judged))
    return shares


def advice(rows: Sequence[Row]) -> str:
    """One sentence: what this device should use."""
    fixed = [row for row in rows if isinstance(row.get("draft_length"), int)]
    best = max(fixed, key=lambda row: float(row["tokens_per_s"]))
    auto = next((row for row in rows if row.get("draft_length") == "auto"), None)
    name = f"--draft-length {best['draft_length']}"
    if auto is None:
        return f"This device should use {name}: {best['speedup']:.2f} x plain decoding."
    share = auto["tokens_per_s"] / best["tokens_per_s"]
    which = f"the best fixed length, {best['draft_length']}, has {best['speedup']:.2f}"
    if share >= AS_GOOD:
        return (
            f"This device should use --draft-length auto, the default: {auto['speedup']:.2f} x "
            f"plain decoding; {which}."
        )
    return (
        f"This device should use {name}: {best['speedup']:.2f} x plain decoding, auto "
        f"{auto['speedup']:.2f}."
    )
