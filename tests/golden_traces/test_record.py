import json

from tests.golden_traces.record import GOLDEN, record, written


def test_the_golden_traces_are_what_the_loop_does_today():
    assert GOLDEN.read_text() == written(record()), "python -m tests.golden_traces writes them anew"


def test_the_traces_stop_at_every_place_of_a_round():
    traces = json.loads(GOLDEN.read_text())["traces"]
    assert len(traces) >= 50
    for name in ("stop", "max tokens", "context end"):
        ends = [trace["turns"][0]["steps"] for trace in traces if trace["name"] == name]
        places = {len(steps[-1][0]) for steps in ends if len(steps) > 1}
        assert places >= {1, 2, 3, 4, 5}, name
    assert any(step[1] for step in traces_of("auto", traces)), "auto drafts where it pays"
    assert any(not step[1] for step in traces_of("auto", traces)), "and not where it does not"
    assert {turn["draft_length"] for trace in traces for turn in trace["turns"]} >= set(range(8))


def traces_of(name, traces):
    turns = [turn for trace in traces if trace["name"] == name for turn in trace["turns"]]
    return [step for turn in turns for step in turn["steps"][1:]]
