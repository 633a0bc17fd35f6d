"""The shim through ctypes: damaged files, wrong inputs, and a hundred loads."""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends.executorch.library import Tensor, load_library
from runtime_py.backends.executorch.program import Program
from runtime_py.errors import RunError

BUNDLE = Path(__file__).parents[1] / "toy.pte"
CONTENT = BUNDLE.read_bytes()
START = np.zeros(1, np.int64)


@pytest.fixture(autouse=True, scope="module")
def library():
    try:
        return load_library()
    except RunError as error:
        pytest.skip(str(error))


@pytest.fixture
def program():
    loaded = Program(BUNDLE, 1)
    yield loaded
    loaded.close()


def tokens(*token_ids):
    return np.array([token_ids], np.int64)


def resident_kib():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_methods_tell_their_tensors(program):
    assert sorted(program.methods)[:2] == ["context_length", "draft"]
    finish = program.methods["finish"]
    assert [(spec.dtype, spec.shape) for spec in (*finish.inputs, *finish.outputs)] == [
        ("float32", (1, 4, 16)),
        ("float32", (1, 4, 2, 4)),
        ("int64", (1,)),
        ("float32", (1, 4, 48)),
        ("float32", (1, 4, 16)),
    ]
    assert int(program.run("vocab_size", ())[0]) == 48


def test_a_run_takes_any_length_within_the_bounds(program):
    for num_tokens in (8, 1, 3):
        hidden, per_layer = program.run("fill", (tokens(*range(num_tokens)), START))
        assert hidden.shape == (1, num_tokens, 16)
        assert per_layer.shape == (1, num_tokens, 2, 4)


@pytest.mark.parametrize(
    "inputs",
    [
        (tokens(*range(9)), START),  # longer than the bound
        (tokens(1), START.astype(np.float32)),
        (np.float32([[1.0]]), START),
        (tokens(1)[0], START),  # a rank too few
        (tokens(1),),
        (tokens(1), START, START),
        (tokens(1), np.zeros(2, np.int64)),
    ],
)
def test_wrong_inputs_are_an_error_and_the_program_lives_on(program, inputs):
    with pytest.raises(RunError, match=r"fill: |wrong number") as raised:
        program.run("fill", inputs)
    assert "\n" not in str(raised.value)
    program.run("fill", (tokens(1), START))


def test_rows_past_the_end_of_the_cache_are_not_written(program):
    """The backend checks before; here the kernel itself refuses."""
    with pytest.raises(RunError, match="fill: "):
        program.run("fill", (tokens(1, 2, 3), START + 22))
    program.run("fill", (tokens(1, 2), START + 22))


def test_a_buffer_is_found_where_the_methods_write_it(program):
    rows = program.find_buffer("fill", "kv.k_1")
    assert (rows.shape, rows.dtype) == ((1, 24, 1, 8), np.float32)
    assert not rows.any()
    program.run("fill", (tokens(1, 2, 3), START))
    assert rows.any(axis=(0, 2, 3)).tolist() == [True] * 3 + [False] * 21
    assert program.find_buffer("draft", "kv.k_1").ctypes.data == rows.ctypes.data
    assert program.find_buffer("fill", "kv.k_2") is None
    assert program.find_buffer("backward", "kv.k_1") is None
    program.close()
    assert program.find_buffer("fill", "kv.k_1") is None


def test_an_unknown_method_is_an_error(program):
    with pytest.raises(RunError, match="no method backward"):
        program.run("backward", ())
    program.close()
    with pytest.raises(RunError, match="no method fill"):
        program.run("fill", (tokens(1), START))


def test_a_file_cut_anywhere_is_one_line(tmp_path):
    path = tmp_path / "cut.pte"
    lengths = {*range(0, 80), *range(80, len(CONTENT), 997), len(CONTENT) - 1}
    for length in sorted(lengths):
        path.write_bytes(CONTENT[:length])
        with pytest.raises(RunError, match=r"not a \.pte|truncated") as raised:
            Program(path, 1)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 100, b"\0" * 4096, CONTENT[1:]])
def test_another_kind_of_file_is_refused(tmp_path, content):
    path = tmp_path / "other.pte"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"not a \.pte"):
        Program(path, 1)


def test_a_missing_file_or_a_folder_is_an_error(tmp_path):
    for path in (tmp_path / "none.pte", tmp_path):
        with pytest.raises(RunError, match=str(path)):
            Program(path, 1)


def test_a_damaged_table_of_contents_is_found(tmp_path):
    path = tmp_path / "damaged.pte"
    for offset in (0, 4, 8, 16, 24, 32):
        damaged = bytearray(CONTENT)
        damaged[offset : offset + 4] = b"\xff\xff\xff\x7f"
        path.write_bytes(damaged)
        with pytest.raises(RunError):
            Program(path, 1)


def test_an_operator_the_runtime_lacks_is_named(tmp_path):
    """In a fresh interpreter: ExecuTorch's own Python module would keep the reason to its log."""
    path = tmp_path / "lacking.pte"
    path.write_bytes(CONTENT.replace(b"llama::custom_sdpa", b"llama::custom_spda"))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from runtime_py.backends.executorch.program import Program\n"
        "from runtime_py.errors import RunError\n"
        "try:\n"
        "    Program(Path(sys.argv[1]), 1)\n"
        "except RunError as error:\n"
        "    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "kernel 'llama::custom_spda.out' not found" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_hundred_loads_do_not_grow(tmp_path):
    damaged = tmp_path / "cut.pte"
    damaged.write_bytes(CONTENT[:-1])

    def use():
        program = Program(BUNDLE, 1)
        filled = program.run("fill", (tokens(1, 2, 3), START))
        program.run("finish", (*(output.copy() for output in filled), START))
        program.close()
        with pytest.raises(RunError):
            Program(damaged, 1)

    for _ in range(20):
        use()
    before = resident_kib()
    for _ in range(100):
        use()
    assert resident_kib() - before < 512  # one program is about 1 MiB


def test_the_functions_mind_no_null(library):
    error = ctypes.create_string_buffer(64)
    assert library.gx_load(None, 1, error, 64) is None
    assert error.value == b"no path"
    assert library.gx_load(b"/", 1, None, 0) is None
    assert library.gx_load(b"/", 1, error, 5) is None
    assert len(error.value) == 4
    library.gx_unload(None)
    assert library.gx_num_methods(None) == -1
    assert library.gx_method_name(None, 0) is None
    assert library.gx_num_tensors(None, 0, 0) == -1
    assert library.gx_describe(None, 0, 0, 0, Tensor()) == -1
    assert library.gx_run(None, 0, None, 0, None, 0, error, 64) == -1
    assert error.value == b"no such method"
    assert library.gx_has_operator(None) == 0


def test_the_functions_mind_no_wrong_index(program, library):
    handle = program._handle
    for method in (-1, 1000):
        assert library.gx_method_name(handle, method) is None
        assert library.gx_num_tensors(handle, method, 1) == -1
        assert library.gx_describe(handle, method, 0, 0, Tensor()) == -1
    fill = program.methods["fill"].index
    assert library.gx_describe(handle, fill, 0, 2, Tensor()) == -1
    assert library.gx_describe(handle, fill, 0, -1, Tensor()) == -1
    assert library.gx_describe(handle, fill, 0, 0, None) == -1
    assert library.gx_run(handle, fill, None, 2, None, 2, None, 0) == -1
    assert library.gx_run(handle, fill, (Tensor * 2)(), 2, (Tensor * 2)(), 2, None, 0) == -1


@pytest.mark.slow
def test_equal_integers_with_other_scales_stay_apart(tmp_path):
    """XNNPACK's weight cache would take the second for the first."""
    pytest.importorskip("torchao")
    from tests.runtime_py.backends import toy_executorch

    expected = toy_executorch.write_twins(tmp_path / "twins.pte")
    loaded = Program(tmp_path / "twins.pte", 1)
    found = loaded.run("forward", (np.ones((1, 2, 64), np.float32),))
    for output, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(output, wanted, rtol=0, atol=1e-5)
    loaded.close()
