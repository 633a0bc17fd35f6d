"""The measuring itself: order, warm-up, ratios, and what a result file says."""

import json
import socket

import numpy as np
import pytest

from tests.benchmarks.record import (
    Result,
    alternate,
    describe_machine,
    median_interval,
    ratio,
    write,
)


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


def test_an_interval_leaves_out_what_chance_puts_beyond_the_median():
    assert median_interval([6.0, 1.0, 5.0, 2.0, 4.0, 3.0]) == (1.0, 6.0)
    assert median_interval([float(n) for n in range(1, 10)]) == (2.0, 8.0)
    assert median_interval([float(n) for n in range(1, 16)]) == (4.0, 12.0)
    with pytest.raises(ValueError, match="at least 6"):
        median_interval([1.0] * 5)


@pytest.mark.parametrize("size", [6, 9, 15, 30])
def test_an_interval_is_as_sure_as_it_says(size):
    """Of numbers whose median is 0 it holds 0 in 95 % of all draws or more."""
    draws = np.random.default_rng(size).standard_cauchy((4000, size))
    held = [low <= 0 <= high for low, high in map(median_interval, draws.tolist())]
    assert np.mean(held) > 0.945
