"""Three ways to hand the KV rows to the ONNX graphs, for `kv_in_place`."""

from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_py.backends.onnx.contract import PAST, PRESENT, Contract
from runtime_py.backends.onnx.graph import CPU, Array, Graph, Runtime, zeros

Kv = dict[str, Array]  # by name without past_key_values or present
Step = Callable[[int], npt.NDArray[np.float32]]  # position -> logits [V]


class Graphs:
    """`fill` and `finish`, and room for the KV rows of one context."""

    def __init__(self, model: Path, num_threads: int, num_rows: int) -> None:
        runtime = Runtime(num_threads, (CPU,))
        self.fill = runtime.load(model)
        self.finish = runtime.load(model.with_name("model.finish.onnx"))
        contract = Contract(self.fill)
        self.vocab_size = contract.numbers["vocab_size"]
        self._between, self._sizes, self._num_rows = contract.between, contract.kv, num_rows

    def kv(self) -> Kv:
        return {
            name: zeros((1, heads, self._num_rows, size))
            for name, (heads, size) in self._sizes.items()
        }

    def bound(self, kv: Kv, present: Kv) -> Step:
        """Decode with everything bound, reading `kv` and writing `present`."""
        tokens, position = zeros((1, 1), np.int64), zeros((1,), np.int64)
        between = {name: zeros((1, 1, *sizes)) for name, sizes in self._between.items()}
        logits = zeros((1, 1, self.vocab_size))
        inputs = {"token_ids": tokens, "position": position, **_named(PAST, kv)}
        fill = self.fill.bind(inputs, {**between, **_named(PRESENT, present)})
        read = _taken(self.finish, _named(PAST, present))
        finish = self.finish.bind({**between, "position": position, **read}, {"logits": logits})

        def step(at: int) -> npt.NDArray[np.float32]:
            tokens[...], position[...] = 5 + at, at
            fill.run()
            finish.run()
            first: npt.NDArray[np.float32] = logits[0, 0]
            return first

        return step


def in_place(graphs: Graphs) -> Step:
    """Past and present are the same memory: the product's way."""
    kv = graphs.kv()
    return graphs.bound(kv, kv)


def two_buffers(graphs: Graphs) -> Step:
    """Past and present take turns."""
    one, other = graphs.kv(), graphs.kv()
    turns: Iterator[Step] = cycle([graphs.bound(one, other), graphs.bound(other, one)])
    return lambda position: next(turns)(position)


def arrays(graphs: Graphs) -> Step:
    """Through session.run, which takes and returns NumPy arrays, as most examples do."""
    kv = graphs.kv()

    def step(position: int) -> npt.NDArray[np.float32]:
        nonlocal kv
        where: dict[str, Any] = {"position": np.array([position], np.int64)}
        tokens = np.array([[5 + position]], np.int64)
        out = _run(graphs.fill, {**where, "token_ids": tokens, **_named(PAST, kv)})
        kv = {name: out.pop(PRESENT + name) for name in kv}
        read = _taken(graphs.finish, _named(PAST, kv))
        logits: npt.NDArray[np.float32] = _run(graphs.finish, {**where, **out, **read})["logits"]
        return logits[0, 0]

    return step


def _run(graph: Graph, inputs: Kv) -> Kv:
    return dict(zip(graph.outputs, graph.session.run(None, inputs), strict=True))


def _named(prefix: str, kv: Kv) -> Kv:
    return {prefix + name: rows for name, rows in kv.items()}


def _taken(graph: Graph, kv: Kv) -> Kv:
    return {name: rows for name, rows in kv.items() if name in graph.inputs}
