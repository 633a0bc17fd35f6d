"""Run the methods of one .pte over one shared KV buffer.

    fill   (token_ids [1, T], position [1]) -> (hidden [1, T, D], per_layer [1, T, R, P])
           writes the KV rows position .. position + T - 1; T at most max_prefill_length
    finish (hidden, per_layer, position) -> (logits [1, T, V], activations [1, T, D])
           the layers after fill's, which own no KV rows; T at most max_verify_length
    draft  (token_id [1, 1], hidden [1, 1, D], position [1])
           -> (logits [1, 1, V], projected [1, 1, D])

docs/bundle-format.md is the specification. per_layer is there only for models with per-layer
embeddings.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from runtime_py.backends import FloatArray, default_num_threads
from runtime_py.backends.executorch.contract import DRAFT, FILL, FINISH, Contract
from runtime_py.backends.executorch.program import Program
from runtime_py.backends.fill_finish import FillFinishBackend
from runtime_py.backends.kv_pages import KvBuffer, KvPages
from runtime_py.formats.tensor_spec import TensorSpec


def open_executorch(path: Path, *, num_threads: int | None = None) -> FillFinishBackend:
    """Load a .pte of gemma-export, to be run on the CPU.

    Args:
        path: the .pte file; embedding tables stay in it and are gathered from the mapped file.
        num_threads: CPU threads; default: the available cores, at most 4. The first backend that
            a process has open decides for all of them.

    Raises:
        RunError: if ExecuTorch is not installed, or the file is damaged or not of the contract.
    """
    program = Program(path, num_threads or default_num_threads())
    try:
        contract = Contract(path, program)
        window = contract.sliding.window if contract.sliding else None
        pages = KvPages(list(_sliding_buffers(program, contract)), window)
        return FillFinishBackend(path, contract.numbers, _Graphs(program, contract), pages)
    except BaseException:
        program.close()
        raise


class _Graphs:
    """The methods of one program, with the arrays that they read."""

    def __init__(self, program: Program, contract: Contract) -> None:
        self._program = program
        self._between = [_Between(spec) for spec in contract.between]
        self._position = np.zeros(1, np.int64)
        self._token_id = np.zeros((1, 1), np.int64)
        self._hidden = np.zeros((1, 1, contract.numbers["hidden_size"]), np.float32)

    def fill(self, token_ids: Sequence[int], position: int) -> None:
        self._fill(token_ids, position)

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        filled = self._fill(token_ids, position)
        inputs = [own.keep(found) for own, found in zip(self._between, filled, strict=True)]
        logits, hidden = self._program.run(FINISH, (*inputs, self._position))
        return logits[0], hidden[0]

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        self._token_id[...] = token_id
        self._hidden[...] = hidden  # a copy: it may lie where the outputs will
        self._position[0] = position
        inputs = (self._token_id, self._hidden, self._position)
        logits, projected = self._program.run(DRAFT, inputs)
        return logits[0, 0], projected[0, 0]

    def close(self) -> None:
        self._program.close()

    def _fill(self, token_ids: Sequence[int], position: int) -> list[FloatArray]:
        self._position[0] = position
        return self._program.run(FILL, (np.array([token_ids], np.int64), self._position))


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


def _sliding_buffers(program: Program, contract: Contract) -> Iterator[KvBuffer]:
    """The rows of sliding layers: kv.k_{i} and kv.v_{i} [1, C, G, E]."""
    num_rows = contract.numbers["context_length"]
    for layer in contract.sliding.layers if contract.sliding else ():
        for name in (f"kv.k_{layer}", f"kv.v_{layer}"):
            rows = program.find_buffer(FILL, name)
            if rows is not None and rows.shape[1:2] == (num_rows,):
                yield KvBuffer(
                    address=rows.ctypes.data,
                    num_heads=1,
                    num_rows=num_rows,
                    row_bytes=rows.nbytes // num_rows,
                    slides=True,
                )
