"""The measuring itself: order, warm-up, ratios, and what a result file says."""

import json
import socket

from tests.benchmarks.record import Result, alternate, describe_machine, ratio, write


def test_calls_take_turns_and_the_warm_up_is_dropped():
    order: list[str] = []

    def call(name: str):
        return lambda: order.append(name) or float(len(order))

    raw = alternate({"a": call("a"), "b": call("b")}, num_repeats=2, num_warmups=1)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert raw == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_ratio_is_of_neighbours():
    # The machine became ten times slower in between; neither 1 nor 20 is the answer.
    assert ratio({"a": [2.0, 20.0, 22.0], "b": [1.0, 10.0, 11.0]}, "a", "b") == 2.0


def test_a_result_says_where_and_when_and_not_on_whose_machine(tmp_path):
    out = tmp_path / "results" / "x.json"
    result = Result(settings={"threads": 1}, raw={"a ms": [3.0, 1.0, 2.123456]}, ratios={})
    write(out, "x", describe_machine(), result)
    values = json.loads(out.read_text())
    assert values["medians"] == {"a ms": 2.1235}
    assert values["raw"] == {"a ms": [3.0, 1.0, 2.1235]}
    assert values["machine"]["cores"] >= 1
    assert {"date", "commit", "tools", "settings", "ratios"} <= set(values)
    assert socket.gethostname() not in out.read_text()
    assert str(tmp_path) not in out.read_text()
