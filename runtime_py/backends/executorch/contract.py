"""What the ExecuTorch backend requires of a .pte's methods before it runs them on a prompt."""

from pathlib import Path

from runtime_py.backends.executorch.program import MethodSpec, Program
from runtime_py.backends.fill_finish import NAMES, check_numbers
from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.bundle.sliding import KEY, sliding_entry
from runtime_py.errors import RunError
from runtime_py.formats.tensor_spec import TensorSpec

FILL = "fill"
FINISH = "finish"
DRAFT = "draft"
_FORMAT_VERSION = 2
_POSITION = TensorSpec("int64", (1,))


class Contract:
    """The contract of one program.

    Attributes:
        numbers: all of NAMES.
        between: what fill hands to finish, at finish's widest.
        sliding: the layers whose rows behind the window may be released; None: no layer's.

    Raises:
        RunError: if the program does not keep it.
    """

    def __init__(self, path: Path, program: Program) -> None:
        self._path, self._program = path, program
        self.numbers = self._read_numbers()
        self.between = self._check_target()
        if self.numbers["has_drafter"]:
            self._check_drafter()
        self.sliding = self._read_sliding()

    def _read_numbers(self) -> dict[str, int]:
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
        prefill_length = self.numbers["max_prefill_length"]
        verify_length = self.numbers["max_verify_length"]
        hidden = self._floats("hidden_size", verify_length)
        between = (hidden, *self._per_layer(verify_length))
        self._check(
            FILL,
            (TensorSpec("int64", (1, prefill_length)), _POSITION),
            tuple(TensorSpec("float32", (1, prefill_length, *spec.shape[2:])) for spec in between),
        )
        logits = self._floats("vocab_size", verify_length)
        self._check(FINISH, (*between, _POSITION), (logits, hidden))
        return between

    def _per_layer(self, length: int) -> tuple[TensorSpec, ...]:
        """per_layer [1, T, R, P] if fill gives it, which alone says what R and P are."""
        fill = self._program.methods.get(FILL)
        if fill is None or len(fill.outputs) != 2 or len(fill.outputs[1].shape) != 4:
            return ()
        return (TensorSpec("float32", (1, length, *fill.outputs[1].shape[2:])),)

    def _check_drafter(self) -> None:
        token_id, hidden = TensorSpec("int64", (1, 1)), self._floats("hidden_size", 1)
        logits = self._floats("vocab_size", 1)
        self._check(DRAFT, (token_id, hidden, _POSITION), (logits, hidden))

    def _floats(self, size: str, length: int) -> TensorSpec:
        return TensorSpec("float32", (1, length, self.numbers[size]))

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
    return ", ".join(map(str, specs))
