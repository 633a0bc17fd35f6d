"""Time inside the native graph calls of a LiteRTBackend, and nothing else."""

import time
from collections.abc import Iterator
from typing import Any

from runtime_py.backends.litert import LiteRTBackend


class GraphClock:
    """Adds up the seconds that a backend spends in LiteRT's own run call.

    Not in it: filling masks and embeddings, handing inputs over, Python around the call. The
    backend has no hook for this, and does not need one in use: its signatures are reached into.
    """

    def __init__(self, backend: LiteRTBackend) -> None:
        self.seconds = 0.0
        self.num_calls = 0
        for signature in _signatures(backend):
            signature._model = _Watched(self, signature._model)

    def reset(self) -> None:
        self.seconds, self.num_calls = 0.0, 0


class _Watched:
    """Stands in for a CompiledModel."""

    def __init__(self, clock: GraphClock, model: Any) -> None:
        self._clock = clock
        self._native = model._model

    def run_by_index(self, index: int, inputs: list[Any], outputs: list[Any]) -> None:
        lent = [buffer.capsule for buffer in inputs]
        filled = [buffer.capsule for buffer in outputs]
        start = time.perf_counter()
        self._native.RunByIndex(index, lent, filled)
        self._clock.seconds += time.perf_counter() - start
        self._clock.num_calls += 1


def _signatures(backend: LiteRTBackend) -> Iterator[Any]:
    steps = [*backend._prefill.values(), *backend._verify.values()]
    lookups = {id(lookup): lookup for step in steps for lookup, _ in step._lookups}
    drafter = [] if backend._drafter is None else [backend._drafter]
    for part in (*steps, *lookups.values(), *drafter):
        yield part._signature
