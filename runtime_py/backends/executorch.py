"""The ExecuTorch backend: the methods of one .pte over one shared KV buffer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime_py.backends import FloatArray, check_request, default_num_threads
from runtime_py.backends.executorch_program import MethodSpec, Program, TensorSpec
from runtime_py.errors import RunError

FILL = "fill"  # KV rows only
FORWARD = "forward"  # KV rows, logits and hidden states
DRAFT = "draft"
_FORMAT_VERSION = 1
_CONSTANTS = (
    "format_version",
    "context_length",
    "vocab_size",
    "hidden_size",
    "max_prefill_length",
    "max_verify_length",
    "has_drafter",
)


class ExecuTorchBackend:
    """A .pte of gemma-export, run on the CPU.

    Args:
        path: the .pte file; embedding tables stay in it and are gathered from the mapped file.
        num_threads: CPU threads; default: the available cores, at most 4. The first backend that
            a process has open decides for all of them.

    Raises:
        RunError: if ExecuTorch is not installed, or the file is damaged or not of the contract.
    """

    def __init__(self, path: Path, *, num_threads: int | None = None) -> None:
        self._path = path
        self._program = Program(path, num_threads or default_num_threads())
        try:
            self._constants = self._read_constants()
            self._check_methods()
        except BaseException:
            self._program.close()
            raise
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

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        check_request(self, token_ids, position)
        longest = self._constants["max_prefill_length"]
        for done in range(0, len(token_ids), longest):
            self._run_target(FILL, token_ids[done : done + longest], position + done)

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        check_request(self, token_ids, position)
        if len(token_ids) > self.verify_widths[-1]:
            raise RunError(
                f"{len(token_ids)} tokens to verify, this bundle takes {self.verify_widths[-1]}"
            )
        logits, hidden = self._run_target(FORWARD, token_ids, position)
        return logits[0], hidden[0]

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        if not self.has_drafter:
            raise RunError(f"{self._path}: no drafter in this bundle; export again with a drafter")
        check_request(self, (token_id,), position)
        if position < 1:
            raise RunError("the drafter needs a committed row; its position is at least 1")
        self._draft_token[...] = token_id
        self._draft_hidden[...] = hidden  # a copy: it may lie where the outputs will
        self._start[0] = position
        inputs = (self._draft_token, self._draft_hidden, self._start)
        logits, projected = self._program.run(DRAFT, inputs)
        return logits[0, 0], projected[0, 0]

    def close(self) -> None:
        """Free the program; neither the backend nor arrays it returned can be used afterwards."""
        self._program.close()

    def _run_target(self, method: str, token_ids: Sequence[int], position: int) -> list[FloatArray]:
        self._start[0] = position
        return self._program.run(method, (np.array([token_ids], np.int64), self._start))

    def _read_constants(self) -> dict[str, int]:
        scalar = (TensorSpec("int64", ()),)
        values = {}
        for name in _CONSTANTS:
            spec = self._program.methods.get(name)
            if spec is None or spec.inputs or spec.outputs != scalar:
                raise RunError(f"{self._path}: no number {name}; export again with gemma-export")
            values[name] = int(self._program.run(name, ())[0])
        if values["format_version"] != _FORMAT_VERSION:
            raise RunError(
                f"{self._path}: its methods have version {values['format_version']}, this runtime "
                f"reads {_FORMAT_VERSION}; export again with the matching gemma-export"
            )
        for name in _CONSTANTS[1:-1]:
            if values[name] < 1:
                raise RunError(f"{self._path}: {name} is {values[name]}; export again")
        return values

    def _check_methods(self) -> None:
        sizes = self._constants
        hidden_size, vocab_size = sizes["hidden_size"], sizes["vocab_size"]
        prefill_length, verify_length = sizes["max_prefill_length"], sizes["max_verify_length"]
        position = TensorSpec("int64", (1,))

        def token_ids(length: int) -> TensorSpec:
            return TensorSpec("int64", (1, length))

        def floats(length: int, size: int) -> TensorSpec:
            return TensorSpec("float32", (1, length, size))

        self._check(FILL, (token_ids(prefill_length), position), (position,))
        self._check(
            FORWARD,
            (token_ids(verify_length), position),
            (floats(verify_length, vocab_size), floats(verify_length, hidden_size)),
        )
        if self.has_drafter:
            self._check(
                DRAFT,
                (token_ids(1), floats(1, hidden_size), position),
                (floats(1, vocab_size), floats(1, hidden_size)),
            )

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


def _text(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in specs)
