"""What the ONNX backend requires of the three graphs before it binds memory to their tensors."""

from collections.abc import Iterable, Mapping

from runtime_py.backends.fill_finish import NAMES, check_numbers
from runtime_py.backends.onnx.graph import Graph
from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.bundle.sliding import KEY, read_sliding
from runtime_py.errors import RunError
from runtime_py.formats.tensor_spec import FREE, TensorSpec

PAST = "past_key_values."
PRESENT = "present."
FORMAT_VERSION = 1
_MAX_NUMBER = 2**31 - 1
_POSITION = TensorSpec("int64", (1,))
Specs = Mapping[str, TensorSpec]


def read_numbers(graph: Graph) -> dict[str, int]:
    """The numbers in the metadata.

    Raises:
        RunError: if one is missing or out of range, or the format version is another.
    """
    numbers = {}
    for name in NAMES:
        text = graph.numbers.get(name, "")
        if not (text.isascii() and text.isdecimal() and int(text[:11]) <= _MAX_NUMBER):
            raise RunError(f"{graph.path}: no number {name}; export again with gemma-export")
        numbers[name] = int(text)
    check_numbers(graph.path, numbers, FORMAT_VERSION, "graphs")
    return numbers


class Contract:
    """The contract of one bundle, derived from fill's tensors.

    Attributes:
        numbers: all of NAMES.
        kv: {i}.key and {i}.value -> G and E of the KV rows.
        kv_dtype: of all KV rows.
        between: what fill hands to finish, name -> sizes after [1, T].
        sliding: the layers whose rows behind the window may be released; None: no layer's.

    Raises:
        RunError: if fill does not keep it.
    """

    def __init__(self, fill: Graph) -> None:
        self.numbers = read_numbers(fill)
        self.kv = {
            name.removeprefix(PAST): _kv_sizes(fill, name, spec)
            for name, spec in fill.inputs.items()
            if name.startswith(PAST)
        }
        self.kv_dtype = _kv_dtype(fill)
        self.between: dict[str, tuple[int, ...]] = {"hidden": (self.numbers["hidden_size"],)}
        if "per_layer" in fill.outputs:
            sizes = fill.outputs["per_layer"].shape[2:]
            self.between["per_layer"] = tuple(max(size, 0) for size in sizes)
        self.sliding = _sliding(fill, self.kv)
        present = {f"{PRESENT}{name}": self._rows(name) for name in self.kv}
        token_ids = TensorSpec("int64", (1, FREE))
        _check(fill, "takes", fill.inputs, {"token_ids": token_ids, **self._common(fill)})
        _check(fill, "gives", fill.outputs, {**self._handed_over(), **present})

    def check_finish(self, graph: Graph) -> None:
        self._check_numbers(graph)
        _check(graph, "takes", graph.inputs, {**self._handed_over(), **self._common(graph)})
        outputs = {"logits": self._floats("vocab_size"), "activations": self._floats("hidden_size")}
        _check(graph, "gives", graph.outputs, outputs)

    def check_draft(self, graph: Graph) -> None:
        self._check_numbers(graph)
        hidden, logits = self._floats("hidden_size", 1), self._floats("vocab_size", 1)
        own = {"token_id": TensorSpec("int64", (1, 1)), "hidden": hidden}
        _check(graph, "takes", graph.inputs, {**own, **self._common(graph)})
        _check(graph, "gives", graph.outputs, {"logits": logits, "projected": hidden})

    def _check_numbers(self, graph: Graph) -> None:
        found = read_numbers(graph)
        for name, number in self.numbers.items():
            if found[name] != number:
                raise RunError(
                    f"{graph.path}: {name} is {found[name]}, model.fill.onnx says {number}; "
                    "copy all files of one bundle again"
                )

    def _common(self, graph: Graph) -> dict[str, TensorSpec]:
        """position, and the KV rows that the graph reads."""
        past = {f"{PAST}{name}": self._rows(name) for name in self.kv}
        return {
            "position": _POSITION,
            **{name: past[name] for name in past if name in graph.inputs},
        }

    def _handed_over(self) -> dict[str, TensorSpec]:
        return {
            name: TensorSpec("float32", (1, FREE, *sizes)) for name, sizes in self.between.items()
        }

    def _rows(self, name: str) -> TensorSpec:
        num_heads, head_size = self.kv[name]
        return TensorSpec(self.kv_dtype, (1, num_heads, FREE, head_size))

    def _floats(self, size: str, num_tokens: int = FREE) -> TensorSpec:
        return TensorSpec("float32", (1, num_tokens, self.numbers[size]))


def _kv_sizes(fill: Graph, name: str, spec: TensorSpec) -> tuple[int, int]:
    if len(spec.shape) == 4 and spec.shape[1] > 0 and spec.shape[3] > 0:
        return spec.shape[1], spec.shape[3]
    raise RunError(f"{fill.path}: {name} is {spec}, needed float32[1, G, ?, E]; export again")


def _sliding(fill: Graph, kv: Iterable[str]) -> SlidingEntry | None:
    layers = (name.partition(".")[0] for name in kv)
    owners = {int(layer) for layer in layers if layer.isascii() and layer.isdecimal()}
    return read_sliding(fill.path, fill.numbers.get(KEY, ""), owners)


def _kv_dtype(fill: Graph) -> str:
    """int8 if any row is; _check then refuses rows of another type."""
    dtypes = {spec.dtype for name, spec in fill.inputs.items() if name.startswith(PAST)}
    return "int8" if "int8" in dtypes else "float32"


def _check(graph: Graph, verb: str, found: Specs, needed: Specs) -> None:
    for name in {**needed, **found}:
        if found.get(name) != needed.get(name):
            raise RunError(
                f"{graph.path}: {verb} {name} {found.get(name, 'not at all')}, needed "
                f"{needed.get(name, 'no such tensor')}; export again with the matching gemma-export"
            )
