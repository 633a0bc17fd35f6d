"""The ONNX backend: three .onnx files over one file of weights and one KV buffer.

No weight is in two of them, because onnxruntime repacks the weights of each session for itself:

    model.fill.onnx    token_ids [1, T], position [1], past -> hidden [1, T, D],
                       per_layer [1, T, R, P], present; T at most max_prefill_length
    model.finish.onnx  hidden, per_layer, position, past -> logits [1, T, V],
                       activations [1, T, D]; T at most max_verify_length
    model.draft.onnx   token_id [1, 1], hidden [1, 1, D], position [1], past
                       -> logits [1, 1, V], projected [1, 1, D]

past is past_key_values.{i}.key and .value [1, G, C, E] of target layer i, and present is
present.{i}.key and .value: bound to the same memory, so that only the rows position ..
position + T - 1 are written. C is the caller's choice, a multiple of ROW_MULTIPLE. Integers are
int64, the others float32, but for the KV rows, which may all be int8. per_layer is there for models
with per-layer embeddings only. Numbers such as max_prefill_length are in the metadata of every
file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime_py.backends import (
    FloatArray,
    check_draft,
    check_request,
    check_verify,
    default_num_threads,
)
from runtime_py.backends.kv_pages import KvBuffer, KvPages
from runtime_py.backends.onnx.contract import PAST, PRESENT, Contract
from runtime_py.backends.onnx.graph import CPU, Array, Call, Graph, Runtime, zeros
from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.errors import RunError
from runtime_py.formats.onnx_files import DRAFT, FILL, FINISH, sibling

ROW_MULTIPLE = 16  # views of the KV rows begin and end on a multiple of it


@dataclass(frozen=True)
class _Verify:
    """One target call over a fixed number of tokens, with its arrays."""

    fill: Call
    finish: Call
    token_ids: Array
    logits: FloatArray
    hidden: FloatArray


@dataclass(frozen=True)
class _Draft:
    """One draft step, with its arrays."""

    call: Call
    token_id: Array
    hidden: FloatArray
    logits: FloatArray
    projected: FloatArray


class OnnxBackend:
    """The .onnx files of gemma-export, run by onnxruntime.

    Args:
        path: model.fill.onnx; the other files lie beside it. Embedding tables stay in the data
            file and are gathered from the mapped file.
        num_threads: CPU threads; default: the available cores, at most 4.
        providers: onnxruntime's execution providers, best first; none: the CPU's.

    Raises:
        RunError: if onnxruntime is not installed, or a file is damaged or not of the contract.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_threads: int | None = None,
        providers: Sequence[str] = (),
    ) -> None:
        self._path = path
        runtime = Runtime(num_threads or default_num_threads(), providers or (CPU,))
        fill = runtime.load(path)
        contract = Contract(fill)
        self._numbers, self._between = contract.numbers, contract.between
        finish = runtime.load(sibling(path, FINISH))
        contract.check_finish(finish)
        self._graphs = {FILL: fill, FINISH: finish}
        if self.has_drafter:
            self._graphs[DRAFT] = runtime.load(sibling(path, DRAFT))
            contract.check_draft(self._graphs[DRAFT])
        num_rows = -(-self.cache_length // ROW_MULTIPLE) * ROW_MULTIPLE
        # A stale row is hidden by the mask, which multiplies it by zero: it must not be a NaN.
        self._kv = {
            name: zeros((1, num_heads, num_rows, size), contract.kv_dtype)
            for name, (num_heads, size) in contract.kv.items()
        }
        sliding = contract.sliding
        buffers = [_buffer(name, rows, sliding) for name, rows in self._kv.items()]
        self._pages = KvPages(buffers, sliding.window if sliding else None)
        self._position = np.zeros(1, np.int64)
        self._verify_calls: dict[int, _Verify] = {}
        self._draft_call = self._bind_draft() if self.has_drafter else None

    @property
    def vocab_size(self) -> int:
        return self._numbers["vocab_size"]

    @property
    def hidden_size(self) -> int:
        return self._numbers["hidden_size"]

    @property
    def cache_length(self) -> int:
        return self._numbers["context_length"]

    @property
    def verify_widths(self) -> tuple[int, ...]:
        return tuple(range(1, self._numbers["max_verify_length"] + 1))

    @property
    def has_drafter(self) -> bool:
        return bool(self._numbers["has_drafter"])

    @property
    def resumable_from(self) -> int:
        return self._pages.resumable_from

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        check_request(self, token_ids, position)
        longest = self._numbers["max_prefill_length"]
        for done in range(0, len(token_ids), longest):
            chunk = np.array([token_ids[done : done + longest]], np.int64)
            self._position[0] = position + done
            self._pages.before(position + done)
            self._bind_fill(chunk, {}).run()

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        check_verify(self, token_ids, position)
        width = len(token_ids)
        if width not in self._verify_calls:
            self._verify_calls[width] = self._bind_verify(width)
        call = self._verify_calls[width]
        call.token_ids[0] = token_ids
        self._position[0] = position
        self._pages.before(position)
        call.fill.run()
        call.finish.run()
        return call.logits[0], call.hidden[0]

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        call = self._draft_call
        if call is None:
            raise RunError(f"{self._path}: no drafter in this bundle; export again with a drafter")
        check_draft(self, token_id, position)
        call.token_id[...] = token_id
        call.hidden[...] = hidden
        self._position[0] = position
        call.call.run()
        return call.logits[0, 0], call.projected[0, 0]

    def close(self) -> None:
        """Free sessions and buffers; the backend cannot be used afterwards."""
        self._pages.close()
        self._verify_calls.clear()
        self._draft_call = None
        self._graphs.clear()
        self._kv.clear()

    def _bind_fill(self, token_ids: Array, between: Mapping[str, Array]) -> Call:
        past = {PAST + name: rows for name, rows in self._kv.items()}
        present = {PRESENT + name: rows for name, rows in self._kv.items()}
        inputs = {"token_ids": token_ids, "position": self._position, **past}
        return self._graphs[FILL].bind(inputs, {**between, **present})

    def _bind_verify(self, width: int) -> "_Verify":
        between = {name: zeros((1, width, *rest)) for name, rest in self._between.items()}
        token_ids = zeros((1, width), np.int64)
        logits = zeros((1, width, self.vocab_size))
        hidden = zeros((1, width, self.hidden_size))
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
        hidden = zeros((1, 1, self.hidden_size))
        logits, projected = zeros((1, 1, self.vocab_size)), zeros((1, 1, self.hidden_size))
        own = {"token_id": token_id, "hidden": hidden, "position": self._position}
        call = graph.bind(
            {**own, **self._past_of(graph)}, {"logits": logits, "projected": projected}
        )
        return _Draft(call, token_id, hidden, logits, projected)

    def _past_of(self, graph: Graph) -> dict[str, Array]:
        """The KV rows that a graph reads."""
        return {
            name: self._kv[name.removeprefix(PAST)]
            for name in graph.inputs
            if name.startswith(PAST)
        }


def _buffer(name: str, rows: Array, sliding: SlidingEntry | None) -> KvBuffer:
    """Of {i}.key or {i}.value, [1, G, C, E]."""
    _, num_heads, num_rows, size = rows.shape
    layers = map(str, sliding.layers if sliding else ())
    return KvBuffer(
        address=rows.ctypes.data,
        num_heads=num_heads,
        num_rows=num_rows,
        row_bytes=size * rows.itemsize,
        slides=name.partition(".")[0] in layers,
    )
