"""What only the ExecuTorch backend has; test_backends.py holds the laws of every backend."""

from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends.executorch import backend as executorch
from runtime_py.backends.executorch.backend import open_executorch
from runtime_py.backends.executorch.library import load_library
from runtime_py.backends.executorch.program import MethodSpec
from runtime_py.errors import RunError
from runtime_py.formats.tensor_spec import TensorSpec
from tests.runtime_py.backends.toys import EXECUTORCH

REFERENCE = EXECUTORCH.expected()
TOKEN_IDS = [int(token_id) for token_id in REFERENCE["token_ids"]]
TOLERANCE = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order; values are about 1

PATH = Path("some.pte")
D, V, R, P = 16, 48, 2, 4
NUMBERS = {
    "format_version": 2,
    "context_length": 24,
    "vocab_size": V,
    "hidden_size": D,
    "max_prefill_length": 8,
    "max_verify_length": 4,
    "has_drafter": 1,
}
POSITION = ("int64", 1)
METHODS = {
    "fill": ([("int64", 1, 8), POSITION], [("float32", 1, 8, D), ("float32", 1, 8, R, P)]),
    "finish": (
        [("float32", 1, 4, D), ("float32", 1, 4, R, P), POSITION],
        [("float32", 1, 4, V), ("float32", 1, 4, D)],
    ),
    "draft": (
        [("int64", 1, 1), ("float32", 1, 1, D), POSITION],
        [("float32", 1, 1, V), ("float32", 1, 1, D)],
    ),
}


def tensors(specs):
    return tuple(TensorSpec(dtype, tuple(shape)) for dtype, *shape in specs)


@pytest.fixture
def open_described(monkeypatch):
    """Open a program that has these methods and numbers, and no more than their descriptions."""
    closed = []

    class Described:
        def __init__(self, methods, numbers):
            self._numbers = numbers
            described = methods | {name: ([], [("int64",)]) for name in numbers}
            self.methods = {
                name: MethodSpec(index, tensors(inputs), tensors(outputs))
                for index, (name, (inputs, outputs)) in enumerate(described.items())
            }

        def run(self, name, inputs):
            assert not inputs
            return [np.int64(self._numbers[name])]

        def close(self):
            closed.append(True)

    def open_one(methods, numbers):
        monkeypatch.setattr(executorch, "Program", lambda *_: Described(methods, numbers))
        return open_executorch(PATH, num_threads=1)

    open_one.closed = closed
    return open_one


@pytest.fixture
def open_bundle():
    opened = []

    def open_one(path=EXECUTORCH.bundle):
        try:
            load_library()
        except RunError as error:
            pytest.skip(str(error))
        opened.append(EXECUTORCH.open(path))
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


def test_a_program_of_the_contract_is_taken(open_described):
    assert open_described(METHODS, NUMBERS).verify_widths == (1, 2, 3, 4)


def test_so_is_one_without_per_layer_embeddings_or_drafter(open_described):
    fill, finish = METHODS["fill"], METHODS["finish"]
    methods = {
        "fill": (fill[0], fill[1][:1]),
        "finish": ([finish[0][0], POSITION], finish[1]),
    }
    assert not open_described(methods, NUMBERS | {"has_drafter": 0}).has_drafter


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"format_version": 1}, "have version 1, this runtime reads 2; export again"),
        ({"format_version": 3}, "have version 3, this runtime reads 2"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"context_length": -1}, "context_length is -1"),
        ({"max_verify_length": 9}, "max_verify_length is 9, above max_prefill_length 8"),
        ({"max_prefill_length": 9}, r"fill takes int64\[1, 8\].*needed int64\[1, 9\]"),
        ({"max_verify_length": 3}, r"finish takes float32\[1, 4, 16\].*needed float32\[1, 3, 16\]"),
        ({"vocab_size": 49}, r"finish .* needed .* float32\[1, 4, 49\]"),
        ({"hidden_size": 17}, r"fill .* needed .* float32\[1, 8, 17\]"),
    ],
)
def test_numbers_that_the_methods_contradict_are_refused(open_described, numbers, message):
    with pytest.raises(RunError, match=message) as raised:
        open_described(METHODS, NUMBERS | numbers)
    assert str(raised.value).startswith(f"{PATH}: ")
    assert open_described.closed


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_missing_number_is_named(open_described, name):
    numbers = {key: value for key, value in NUMBERS.items() if key != name}
    with pytest.raises(RunError, match=f"no number {name}"):
        open_described(METHODS, numbers)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_missing_method_is_named(open_described, name):
    methods = {key: value for key, value in METHODS.items() if key != name}
    with pytest.raises(RunError, match=f"no method {name}; export again"):
        open_described(methods, NUMBERS)


@pytest.mark.parametrize(
    ("method", "inputs", "outputs"),
    [
        ("fill", [("int32", 1, 8), POSITION], None),
        ("fill", [POSITION, ("int64", 1, 8)], None),
        ("fill", None, []),
        ("fill", None, [("float32", 1, 8, D)]),  # finish has per_layer
        ("fill", None, [("float32", 1, 8, D), ("float32", 1, 8, R)]),
        ("fill", None, [("float32", 1, 8, D), ("float32", 1, 7, R, P)]),
        ("fill", None, [("float32", 1, 8, D), ("float32", 1, 8, R, P + 1)]),
        ("finish", [("float32", 1, 4, D), POSITION], None),
        ("finish", [("float32", 1, 4, D), ("float32", 1, 4, P, R), POSITION], None),
        ("finish", [("float32", 1, 8, D), ("float32", 1, 8, R, P), POSITION], None),
        ("finish", None, [("float32", 1, 4, D), ("float32", 1, 4, V)]),
        ("draft", [("int64", 1, 1), ("float32", 1, 1, 2 * D), POSITION], None),
        ("draft", None, [("float32", 1, 1, V), ("float64", 1, 1, D)]),
    ],
)
def test_a_method_of_another_shape_is_refused(open_described, method, inputs, outputs):
    found = METHODS[method]
    changed = (
        found[0] if inputs is None else inputs,
        found[1] if outputs is None else outputs,
    )
    with pytest.raises(RunError, match=r"method (fill|finish|draft) takes .* needed ") as raised:
        open_described(METHODS | {method: changed}, NUMBERS)
    assert "\n" not in str(raised.value)
    assert open_described.closed


def test_a_closed_backend_says_so(open_bundle):
    backend = open_bundle()
    backend.close()
    with pytest.raises(RunError, match="no method fill"):
        backend.verify(TOKEN_IDS[:1], 0)


def test_every_width_computes_the_same_bits(open_bundle):
    """The kernels sum each row alone, which makes speculative output equal to plain output."""
    backend = open_bundle()
    for position in range(0, 20, 4):
        wide = [
            array.copy() for array in backend.verify(TOKEN_IDS[position : position + 4], position)
        ]
        for row in range(4):
            one = backend.verify(TOKEN_IDS[position + row : position + row + 1], position + row)
            for found, expected in zip(one, wide, strict=True):
                np.testing.assert_array_equal(found[0], expected[row])


@pytest.mark.slow
def test_the_kept_bundles_are_what_their_generator_writes(open_bundle, tmp_path):
    pytest.importorskip("executorch.exir")
    from tests.runtime_py.backends import toy_executorch

    toy_executorch.record(tmp_path / "reference.npz")
    recorded = np.load(tmp_path / "reference.npz")
    for name, values in recorded.items():
        np.testing.assert_allclose(values, REFERENCE[name], **TOLERANCE)
    for drafter in (True, False):
        toy_executorch.write_bundle(tmp_path / "toy.pte", drafter=drafter)
        made = open_bundle(tmp_path / "toy.pte")
        assert made.has_drafter == drafter
        made.prefill(TOKEN_IDS[:10], 0)
        logits, _ = made.verify(TOKEN_IDS[10:13], 10)
        np.testing.assert_allclose(logits, recorded["logits"][10:13], **TOLERANCE)


@pytest.mark.slow
def test_a_model_without_per_layer_embeddings_runs(open_bundle, tmp_path):
    pytest.importorskip("executorch.exir")
    from tests.runtime_py.backends import toy_executorch

    toy_executorch.write_bundle(tmp_path / "toy.pte", per_layer=False)
    one_by_one, prefilled = (open_bundle(tmp_path / "toy.pte") for _ in range(2))
    for position, token_id in enumerate(TOKEN_IDS[:12]):
        expected, _ = one_by_one.verify([token_id], position)
    assert np.abs(expected[0] - REFERENCE["logits"][11]).max() > 1e-3
    prefilled.prefill(TOKEN_IDS[:9], 0)
    logits, _ = prefilled.verify(TOKEN_IDS[9:12], 9)
    np.testing.assert_allclose(logits[2], expected[0], **TOLERANCE)
