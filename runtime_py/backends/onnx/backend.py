"""Run three .onnx files over one file of weights and one KV buffer.

    model.fill.onnx    token_ids [1, T], position [1], past -> hidden [1, T, D],
                       per_layer [1, T, R, P], present; T at most max_prefill_length
    model.finish.onnx  hidden, per_layer, position, past -> logits [1, T, V],
                       activations [1, T, D]; T at most max_verify_length
    model.draft.onnx   token_id [1, 1], hidden [1, 1, D], position [1], past
                       -> logits [1, 1, V], projected [1, 1, D]

past is past_key_values.{i}.key and .value [1, G, C, E] of target layer i, and present is
present.{i}.key and .value: bound to the same memory, so that only the rows position ..
position + T - 1 are written. C is the caller's choice, a multiple of ROW_MULTIPLE.

docs/bundle-format.md is the specification. per_layer is there only for models with per-layer
embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime_py.backends import FloatArray, default_num_threads
from runtime_py.backends.fill_finish import FillFinishBackend
from runtime_py.backends.kv_pages import KvBuffer, KvPages
from runtime_py.backends.onnx.contract import PAST, PRESENT, Contract
from runtime_py.backends.onnx.graph import CPU, Array, Call, Graph, Runtime, zeros
from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.formats.onnx_files import DRAFT, FILL, FINISH, sibling

ROW_MULTIPLE = 16  # the graphs' views of the KV rows begin and end at multiples of it


@dataclass(frozen=True)
class _Verify:
    """A target call over a fixed number of tokens, and its arrays."""

    fill: Call
    finish: Call
    token_ids: Array
    logits: FloatArray
    hidden: FloatArray


@dataclass(frozen=True)
class _Draft:
    """A draft step, and its arrays."""

    call: Call
    token_id: Array
    hidden: FloatArray
    logits: FloatArray
    projected: FloatArray


def open_onnx(
    path: Path, *, num_threads: int | None = None, providers: Sequence[str] = ()
) -> FillFinishBackend:
    """Load the .onnx files of gemma-export, to be run by onnxruntime.

    Args:
        path: model.fill.onnx; the other files lie beside it. Embedding tables stay in the data
            file and are gathered from the mapped file.
        num_threads: CPU threads; default: the available cores, at most 4.
        providers: onnxruntime's execution providers, best first; none: the CPU's.

    Raises:
        RunError: if onnxruntime is not installed, or a file is damaged or not of the contract.
    """
    runtime = Runtime(num_threads or default_num_threads(), providers or (CPU,))
    fill = runtime.load(path)
    contract = Contract(fill)
    finish = runtime.load(sibling(path, FINISH))
    contract.check_finish(finish)
    loaded = {FILL: fill, FINISH: finish}
    if contract.numbers["has_drafter"]:
        loaded[DRAFT] = runtime.load(sibling(path, DRAFT))
        contract.check_draft(loaded[DRAFT])
    graphs, sliding = _Graphs(loaded, contract), contract.sliding
    buffers = [_buffer(name, rows, sliding) for name, rows in graphs.kv.items()]
    pages = KvPages(buffers, sliding.window if sliding else None)
    return FillFinishBackend(path, contract.numbers, graphs, pages)


class _Graphs:
    """The loaded graphs, each bound to the arrays that it reads and writes.

    Attributes:
        kv: {i}.key and {i}.value [1, G, rows, E]: the KV buffer.
    """

    def __init__(self, loaded: dict[str, Graph], contract: Contract) -> None:
        self._graphs = loaded
        self._numbers, self._between = contract.numbers, contract.between
        num_rows = -(-contract.numbers["context_length"] // ROW_MULTIPLE) * ROW_MULTIPLE
        # A stale row is hidden by the mask, which multiplies it by zero: it must not be a NaN.
        self.kv = {
            name: zeros((1, num_heads, num_rows, size), contract.kv_dtype)
            for name, (num_heads, size) in contract.kv.items()
        }
        self._position = np.zeros(1, np.int64)
        self._verify_calls: dict[int, _Verify] = {}
        self._draft_call = self._bind_draft() if DRAFT in loaded else None

    def fill(self, token_ids: Sequence[int], position: int) -> None:
        self._position[0] = position
        self._bind_fill(np.array([token_ids], np.int64), {}).run()

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        width = len(token_ids)
        if width not in self._verify_calls:
            self._verify_calls[width] = self._bind_verify(width)
        call = self._verify_calls[width]
        call.token_ids[0] = token_ids
        self._position[0] = position
        call.fill.run()
        call.finish.run()
        return call.logits[0], call.hidden[0]

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        call = self._draft_call
        assert call is not None
        call.token_id[...] = token_id
        call.hidden[...] = hidden
        self._position[0] = position
        call.call.run()
        return call.logits[0, 0], call.projected[0, 0]

    def close(self) -> None:
        self._verify_calls.clear()
        self._draft_call = None
        self._graphs.clear()
        self.kv.clear()

    def _bind_fill(self, token_ids: Array, between: Mapping[str, Array]) -> Call:
        past = {PAST + name: rows for name, rows in self.kv.items()}
        present = {PRESENT + name: rows for name, rows in self.kv.items()}
        inputs = {"token_ids": token_ids, "position": self._position, **past}
        return self._graphs[FILL].bind(inputs, {**between, **present})

    def _bind_verify(self, width: int) -> "_Verify":
        between = {name: zeros((1, width, *rest)) for name, rest in self._between.items()}
        token_ids = zeros((1, width), np.int64)
        logits = zeros((1, width, self._numbers["vocab_size"]))
        hidden = zeros((1, width, self._numbers["hidden_size"]))
        finish = self._graphs[FINISH]
        inputs = {**between, "position": self._position, **self._past_of(finish)}
        return _Verify(
            token_ids=token_ids,
            fill=self._bind_fill(token_ids, between),
            finish=finish.bind(inputs, {"logits": logits, "activations": hidden}),
            logits=logits,
            hidden=hidden,
        )

    def _bind_draft(self) -> "_Draft":
        graph = self._graphs[DRAFT]
        token_id = zeros((1, 1), np.int64)
        hidden = zeros((1, 1, self._numbers["hidden_size"]))
        logits, projected = (
            zeros((1, 1, self._numbers["vocab_size"])),
            zeros((1, 1, self._numbers["hidden_size"])),
        )
        own = {"token_id": token_id, "hidden": hidden, "position": self._position}
        call = graph.bind(
            {**own, **self._past_of(graph)}, {"logits": logits, "projected": projected}
        )
        return _Draft(call, token_id, hidden, logits, projected)

    def _past_of(self, graph: Graph) -> dict[str, Array]:
        """The KV rows that a graph reads."""
        return {
            name: self.kv[name.removeprefix(PAST)] for name in graph.inputs if name.startswith(PAST)
        }


def _buffer(name: str, rows: Array, sliding: SlidingEntry | None) -> KvBuffer:
    """Where {i}.key or {i}.value lies, [1, G, C, E]."""
    _, num_heads, num_rows, size = rows.shape
    layers = map(str, sliding.layers if sliding else ())
    return KvBuffer(
        address=rows.ctypes.data,
        num_heads=num_heads,
        num_rows=num_rows,
        row_bytes=size * rows.itemsize,
        slides=name.partition(".")[0] in layers,
    )
