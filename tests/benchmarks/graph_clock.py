"""Time inside the native graph calls of a backend, and nothing else."""

import time
from collections.abc import Iterator
from typing import Any

from runtime_py.backends import Backend
from runtime_py.backends.fill_finish import FillFinishBackend
from runtime_py.backends.litert.backend import LiteRTBackend


class GraphClock:
    """Adds up the seconds that a backend spends in its runtime's own run call.

    Not in it: filling masks and embeddings, handing inputs over, Python around the call. The
    backends have no hook for this, and do not need one in use: they are reached into.
    """

    def __init__(self, backend: Backend) -> None:
        self.seconds = 0.0
        self.num_calls = 0
        if isinstance(backend, LiteRTBackend):
            for model in backend._models:
                model._model = _Watched(self, model._model)  # for what is bound from now on
            for signature in _signatures(backend):
                _watch(self, signature._call)
            return
        assert isinstance(backend, FillFinishBackend)
        graphs: Any = backend._graphs
        if hasattr(graphs, "_program"):
            program = graphs._program
            program._library = _WatchedLibrary(self, program._library)
            return
        for graph in graphs._graphs.values():
            graph.session = _WatchedSession(self, graph.session)

    def reset(self) -> None:
        self.seconds, self.num_calls = 0.0, 0

    def add(self, start: float) -> None:
        """One call that began at `start` and ends now."""
        self.seconds += time.perf_counter() - start
        self.num_calls += 1


class _Watched:
    """Stands in for LiteRT's CompiledModel."""

    def __init__(self, clock: GraphClock, model: Any) -> None:
        self._clock = clock
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def call(self, *arguments: Any) -> Any:
        call = self._model.call(*arguments)
        _watch(self._clock, call)
        return call


def _watch(clock: GraphClock, call: Any) -> None:
    """Time one of LiteRT's calls, down to the native one."""
    native = call.run

    def run() -> Any:
        start = time.perf_counter()
        status = native()
        clock.add(start)
        return status

    call.run = run


class _WatchedLibrary:
    """Stands in for the shim over ExecuTorch."""

    def __init__(self, clock: GraphClock, library: Any) -> None:
        self._clock = clock
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def gx_run(self, *arguments: Any) -> int:
        start = time.perf_counter()
        status: int = self._library.gx_run(*arguments)
        self._clock.add(start)
        return status


class _WatchedSession:
    """Stands in for a session of onnxruntime, down to its native one."""

    def __init__(self, clock: GraphClock, session: Any) -> None:
        self._clock = clock
        self._session = session
        self._native = session._sess

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        start = time.perf_counter()
        self._native.run_with_iobinding(binding._iobinding, None)
        self._clock.add(start)


def _signatures(backend: LiteRTBackend) -> Iterator[Any]:
    """Those that are bound: a target's are when it first runs."""
    steps = [*backend._prefill.values(), *backend._verify.values()]
    bound = [step._bound for step in steps if step._bound is not None]
    lookups = {id(lookup): lookup for step in steps for lookup in step._lookups.values()}
    drafter = [] if backend._drafter is None else [backend._drafter]
    for part in (*bound, *lookups.values(), *drafter):
        yield part._signature
