"""The ExecuTorch backend: the methods of one .pte over one shared KV buffer.

No weight is in two methods, because XNNPACK repacks the weights of each method for itself:

    fill   (token_ids [1, T], position [1]) -> (hidden [1, T, D], per_layer [1, T, R, P])
           writes the KV rows position .. position + T - 1; T at most max_prefill_length
    finish (hidden, per_layer, position) -> (logits [1, T, V], activations [1, T, D])
           the layers after fill's, which own no KV rows; T at most max_verify_length
    draft  (token_id [1, 1], hidden [1, 1, D], position [1])
           -> (logits [1, 1, V], projected [1, 1, D])

Integers are int64, the others float32. per_layer is there for models with per-layer embeddings
only. Numbers such as max_prefill_length are methods without inputs.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from runtime_py.backends import (
    FloatArray,
    check_draft,
    check_request,
    check_verify,
    default_num_threads,
)
from runtime_py.backends.executorch.program import MethodSpec, Program, TensorSpec
from runtime_py.backends.kv_pages import KvBuffer, KvPages
from runtime_py.backends.numbers import NAMES, check_numbers
from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.bundle.sliding import KEY, sliding_entry
from runtime_py.errors import RunError

FILL = "fill"
FINISH = "finish"
DRAFT = "draft"
_FORMAT_VERSION = 2


class ExecuTorchBackend:
    """A .pte of gemma-export, run on the CPU.

    Args:
        path: the .pte file; embedding tables stay in it and are gathered from the mapped file.
        num_threads: CPU threads; default: the available cores, at most 4. The first backend that
            a process has open decides for all of them.

    Raises:
        RunError: if ExecuTorch is not installed, or the file is damaged or not of the contract.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_threads: int | None = None,
    ) -> None:
        self._path = path
        self._program = Program(path, num_threads or default_num_threads())
        try:
            self._constants = self._read_constants()
            between = self._check_target()
            self._check_drafter()
            sliding = self._read_sliding()
        except BaseException:
            self._program.close()
            raise
        self._between = [_Between(spec) for spec in between]
        self._pages = KvPages(list(self._kv_buffers(sliding)), sliding.window if sliding else None)
        self._start = np.zeros(1, np.int64)
        self._draft_token = np.zeros((1, 1), np.int64)
        self._draft_hidden = np.zeros((1, 1, self.hidden_size), np.float32)

    @property
    def vocab_size(self) -> int:
        return self._constants["vocab_size"]

    @property
    def hidden_size(self) -> int:
        return self._constants["hidden_size"]

    @property
    def cache_length(self) -> int:
        return self._constants["context_length"]

    @property
    def verify_widths(self) -> tuple[int, ...]:
        return tuple(range(1, self._constants["max_verify_length"] + 1))

    @property
    def has_drafter(self) -> bool:
        return bool(self._constants["has_drafter"])

    @property
    def resumable_from(self) -> int:
        return self._pages.resumable_from

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        check_request(self, token_ids, position)
        longest = self._constants["max_prefill_length"]
        for done in range(0, len(token_ids), longest):
            self._fill(token_ids[done : done + longest], position + done)

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        check_verify(self, token_ids, position)
        filled = self._fill(token_ids, position)
        inputs = [own.keep(found) for own, found in zip(self._between, filled, strict=True)]
        logits, hidden = self._program.run(FINISH, (*inputs, self._start))
        return logits[0], hidden[0]

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        if not self.has_drafter:
            raise RunError(f"{self._path}: no drafter in this bundle; export again with a drafter")
        check_draft(self, token_id, position)
        self._draft_token[...] = token_id
        self._draft_hidden[...] = hidden  # a copy: it may lie where the outputs will
        self._start[0] = position
        inputs = (self._draft_token, self._draft_hidden, self._start)
        logits, projected = self._program.run(DRAFT, inputs)
        return logits[0, 0], projected[0, 0]

    def close(self) -> None:
        """Free the program; neither the backend nor arrays it returned can be used afterwards."""
        self._pages.close()
        self._program.close()

    def _fill(self, token_ids: Sequence[int], position: int) -> list[FloatArray]:
        self._start[0] = position
        self._pages.before(position)
        return self._program.run(FILL, (np.array([token_ids], np.int64), self._start))

    def _kv_buffers(self, sliding: SlidingEntry | None) -> Iterator[KvBuffer]:
        """The rows of sliding layers: kv.k_{i} and kv.v_{i} [1, C, G, E]."""
        for layer in sliding.layers if sliding else ():
            for name in (f"kv.k_{layer}", f"kv.v_{layer}"):
                rows = self._program.find_buffer(FILL, name)
                if rows is not None and rows.shape[1:2] == (self.cache_length,):
                    yield KvBuffer(
                        address=rows.ctypes.data,
                        num_heads=1,
                        num_rows=self.cache_length,
                        row_bytes=rows.nbytes // self.cache_length,
                        slides=True,
                    )

    def _read_constants(self) -> dict[str, int]:
        scalar = (TensorSpec("int64", ()),)
        values = {}
        for name in NAMES:
            spec = self._program.methods.get(name)
            if spec is None or spec.inputs or spec.outputs != scalar:
                raise RunError(f"{self._path}: no number {name}; export again with gemma-export")
            values[name] = int(self._program.run(name, ())[0])
        check_numbers(self._path, values, _FORMAT_VERSION, "methods")
        return values

    def _read_sliding(self) -> SlidingEntry | None:
        """A method that gives the window and the layers, [1 + n]; none in older programs."""
        spec = self._program.methods.get(KEY)
        if spec is None:
            return None
        output = spec.outputs[0] if len(spec.outputs) == 1 else TensorSpec("none", ())
        if spec.inputs or output.dtype != "int64" or len(output.shape) != 1:
            raise RunError(f"{self._path}: {KEY} is no list of numbers; export again")
        numbers = self._program.run(KEY, ())[0].tolist()
        owners = {layer for layer in numbers[1:] if self._owns_rows(layer)}
        return sliding_entry(self._path, numbers, owners)

    def _owns_rows(self, layer: int) -> bool:
        return self._program.find_buffer(FILL, f"kv.k_{layer}") is not None

    def _check_target(self) -> tuple[TensorSpec, ...]:
        """What goes from fill to finish, at finish's widest."""
        sizes = self._constants
        prefill_length, verify_length = sizes["max_prefill_length"], sizes["max_verify_length"]
        position = TensorSpec("int64", (1,))
        hidden = _floats(verify_length, self.hidden_size)
        between = (hidden, *self._per_layer(verify_length))
        self._check(
            FILL,
            (TensorSpec("int64", (1, prefill_length)), position),
            tuple(_floats(prefill_length, *spec.shape[2:]) for spec in between),
        )
        self._check(FINISH, (*between, position), (_floats(verify_length, self.vocab_size), hidden))
        return between

    def _per_layer(self, length: int) -> tuple[TensorSpec, ...]:
        """per_layer [1, T, R, P] if fill gives it, which alone says what R and P are."""
        fill = self._program.methods.get(FILL)
        if fill is None or len(fill.outputs) != 2 or len(fill.outputs[1].shape) != 4:
            return ()
        return (_floats(length, *fill.outputs[1].shape[2:]),)

    def _check_drafter(self) -> None:
        if not self.has_drafter:
            return
        token_id, position = TensorSpec("int64", (1, 1)), TensorSpec("int64", (1,))
        hidden = _floats(1, self.hidden_size)
        self._check(DRAFT, (token_id, hidden, position), (_floats(1, self.vocab_size), hidden))

    def _check(
        self, name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        found = self._program.methods.get(name)
        if found is None:
            raise RunError(f"{self._path}: no method {name}; export again")
        needed = MethodSpec(found.index, inputs, outputs)
        if found != needed:
            raise RunError(
                f"{self._path}: method {name} takes {_text(found.inputs)} and gives "
                f"{_text(found.outputs)}, needed {_text(inputs)} and {_text(outputs)}; "
                "export again with the matching gemma-export"
            )


class _Between:
    """Our copy of one of fill's outputs: finish's run overwrites the memory they lie in."""

    def __init__(self, widest: TensorSpec) -> None:
        self._size = math.prod(widest.shape[2:])  # of one token
        self._values = np.empty(math.prod(widest.shape), np.float32)

    def keep(self, output: FloatArray) -> FloatArray:
        """A copy [1, T, ...] that is contiguous for every T; valid until the next one."""
        copy = self._values[: output.shape[1] * self._size].reshape(output.shape)
        copy[...] = output
        return copy


def _floats(length: int, *sizes: int) -> TensorSpec:
    return TensorSpec("float32", (1, length, *sizes))


def _text(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in specs)
