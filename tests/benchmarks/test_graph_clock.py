"""The clock in each backend: it sees every call of the runtime, those bound later included."""

import time
from contextlib import closing

import numpy as np
import pytest

from tests.benchmarks.graph_clock import GraphClock
from tests.runtime_py.backends.toys import HIDDEN_SIZE, TOYS


@pytest.mark.parametrize("name", TOYS)
def test_every_stage_is_seen(name):
    with closing(TOYS[name].open()) as backend:
        clock = GraphClock(backend)
        calls = {
            "prefill": lambda: backend.prefill([1, 2, 3], 0),
            "decode": lambda: backend.verify([4], 3),
            "verify": lambda: backend.verify([4, 5], 3),
            "draft": lambda: backend.draft(6, np.zeros(HIDDEN_SIZE, np.float32), 4),
        }
        for stage in (*calls, *calls):  # once more, now that everything is bound
            clock.reset()
            start = time.perf_counter()
            calls[stage]()
            assert clock.num_calls >= 1, stage
            assert 0 < clock.seconds < time.perf_counter() - start
