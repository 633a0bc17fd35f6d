"""What only the ONNX backend has; test_backends.py holds the laws of every backend."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends.onnx import contract as onnx_contract
from runtime_py.backends.onnx.backend import open_onnx
from runtime_py.backends.onnx.contract import Contract
from runtime_py.backends.onnx.graph import CPU, Runtime
from runtime_py.errors import RunError
from runtime_py.formats.tensor_spec import FREE, TensorSpec
from tests.runtime_py.backends.toys import ONNX

pytest.importorskip("onnxruntime")

TOKEN_IDS = [int(token_id) for token_id in ONNX.expected()["token_ids"]]
PATH = Path("model.fill.onnx")
D, V, R, P = 16, 48, 2, 4
NUMBERS = {
    "format_version": "1",
    "context_length": "24",
    "vocab_size": str(V),
    "hidden_size": str(D),
    "max_prefill_length": "8",
    "max_verify_length": "4",
    "has_drafter": "1",
}
POSITION = {"position": TensorSpec("int64", (1,))}
KV = {name: TensorSpec("float32", (1, 1, FREE, 8)) for name in ("0.key", "0.value")}
PAST = {f"past_key_values.{name}": spec for name, spec in KV.items()}
PRESENT = {f"present.{name}": spec for name, spec in KV.items()}
HIDDEN = {"hidden": TensorSpec("float32", (1, FREE, D))}
PER_LAYER = {"per_layer": TensorSpec("float32", (1, FREE, R, P))}
TOKENS = {"token_ids": TensorSpec("int64", (1, FREE))}
OUTPUTS = {
    "logits": TensorSpec("float32", (1, FREE, V)),
    "activations": TensorSpec("float32", (1, FREE, D)),
}


class Described:
    """A graph that has no more than a description."""

    path = PATH

    def __init__(self, inputs, outputs, numbers=NUMBERS):
        self.inputs, self.outputs, self.numbers = inputs, outputs, numbers


FILL = Described(TOKENS | POSITION | PAST, HIDDEN | PER_LAYER | PRESENT)


@pytest.fixture
def copy(tmp_path):
    """The toy bundle where it may be damaged."""
    for path in ONNX.bundle.parent.glob("model.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / ONNX.bundle.name


def refused(path):
    with pytest.raises(RunError) as raised:
        ONNX.open(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_graphs_of_the_contract_are_taken():
    finish = Described(HIDDEN | PER_LAYER | POSITION | PAST, OUTPUTS)
    contract = Contract(FILL)
    contract.check_finish(finish)
    assert contract.kv == {"0.key": (1, 8), "0.value": (1, 8)}
    assert contract.between == {"hidden": (D,), "per_layer": (R, P)}


def test_so_are_graphs_without_per_layer_embeddings_or_rows_to_read():
    contract = Contract(Described(FILL.inputs, HIDDEN | PRESENT))
    contract.check_finish(Described(HIDDEN | POSITION, OUTPUTS))


def test_kv_rows_may_be_int8_but_all_of_them():
    rows = TensorSpec("int8", (1, 1, FREE, 8))
    past, present = (dict.fromkeys(tensors, rows) for tensors in (PAST, PRESENT))
    contract = Contract(Described(FILL.inputs | past, FILL.outputs | present))
    assert contract.kv_dtype == "int8"
    contract.check_finish(Described(HIDDEN | PER_LAYER | POSITION | past, OUTPUTS))
    with pytest.raises(RunError, match=r"takes past.* float32\[1, 1, \?, 8\], needed int8\["):
        contract.check_finish(Described(HIDDEN | PER_LAYER | POSITION | PAST, OUTPUTS))
    with pytest.raises(RunError, match=r"gives present.* float32\[1, 1, \?, 8\], needed int8\["):
        Contract(Described(FILL.inputs | past, FILL.outputs))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"format_version": "2"}, "have version 2, this runtime reads 1; export again"),
        ({"vocab_size": "0"}, "vocab_size is 0"),
        ({"vocab_size": "-1"}, "no number vocab_size"),
        ({"vocab_size": "9" * 30}, "no number vocab_size"),
        ({"vocab_size": "٣"}, "no number vocab_size"),
        ({"context_length": ""}, "no number context_length"),
        ({"max_verify_length": "9"}, "max_verify_length is 9, above max_prefill_length 8"),
        ({"hidden_size": "17"}, r"gives hidden float32\[1, \?, 16\], needed float32\[1, \?, 17\]"),
    ],
)
def test_other_numbers_are_refused(numbers, message):
    with pytest.raises(RunError, match=message):
        Contract(Described(FILL.inputs, FILL.outputs, NUMBERS | numbers))


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (POSITION | PAST, FILL.outputs, "takes token_ids not at all"),
        (FILL.inputs | HIDDEN, FILL.outputs, r"takes hidden .*, needed no such tensor"),
        (FILL.inputs, HIDDEN | PRESENT | OUTPUTS, "needed no such tensor"),
        (FILL.inputs, HIDDEN, r"gives present\.0\.\w+ not at all"),
        (
            FILL.inputs | {"past_key_values.0.key": TensorSpec("float32", (1, FREE, 8))},
            FILL.outputs,
            r"past_key_values.0.key is float32\[1, \?, 8\], needed float32\[1, G, \?, E\]",
        ),
        (
            FILL.inputs | {"token_ids": TensorSpec("float32", (1, FREE))},
            FILL.outputs,
            r"takes token_ids float32\[1, \?\], needed int64\[1, \?\]",
        ),
    ],
)
def test_another_fill_is_refused(inputs, outputs, message):
    with pytest.raises(RunError, match=message):
        Contract(Described(inputs, outputs))


def test_graphs_of_two_exports_are_refused():
    other = Described(HIDDEN | PER_LAYER | POSITION | PAST, OUTPUTS, NUMBERS | {"vocab_size": "49"})
    with pytest.raises(RunError, match=r"vocab_size is 49, model.fill.onnx says 48; copy all"):
        Contract(FILL).check_finish(other)


def test_another_finish_or_draft_is_refused():
    contract = Contract(FILL)
    with pytest.raises(RunError, match="takes per_layer not at all"):
        contract.check_finish(Described(HIDDEN | POSITION | PAST, OUTPUTS))
    with pytest.raises(RunError, match=r"takes token_id not at all, needed int64\[1, 1\]"):
        contract.check_draft(Described(POSITION | PAST, OUTPUTS))


@pytest.mark.parametrize("name", ["model.finish.onnx", "model.draft.onnx", "model.data"])
def test_a_file_that_is_missing_or_cut_is_named(copy, name):
    file = copy.with_name(name)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert str(copy.parent) in refused(copy)
    file.unlink()
    assert name in refused(copy)


@pytest.mark.parametrize("where", [b"../odel.da", b"/etc/hosts"])
def test_weights_outside_the_folder_are_refused(copy, where):
    """By onnxruntime itself, which knows where a file's external data lies."""
    shutil.copy(copy.with_name("model.data"), copy.parent.parent / "odel.da")
    content = copy.read_bytes()
    # A name of another length would move all that follows it.
    named = b"\x0a\x08location\x12\x0a"
    assert named + b"model.data" in content
    copy.write_bytes(content.replace(named + b"model.data", named + where))
    assert "xternal data" in refused(copy)


def test_a_link_that_leads_outside_is_refused(copy):
    data = copy.with_name("model.data")
    outside = copy.parent.parent / "model.data"
    data.rename(outside)
    data.symlink_to(outside)
    assert "xternal data" in refused(copy)


def test_a_provider_that_is_not_there_is_refused():
    with pytest.raises(RunError, match=r"which has .*CPUExecutionProvider; install one"):
        open_onnx(ONNX.bundle, providers=("TeapotExecutionProvider",))


def test_only_the_written_rows_change():
    """past and present are one buffer, which no call copies."""
    backend = ONNX.open()
    for rows in ONNX.kv(backend).values():
        rows[...] = 7.0
    backend.verify(TOKEN_IDS[:3], 5)
    for rows in ONNX.kv(backend).values():
        assert (rows[:, :, :5] == 7).all()
        assert (rows[:, :, 8:] == 7).all()
        assert (rows[:, :, 5:8] != 7).all()


def test_a_step_costs_the_rows_present_and_not_the_capacity(monkeypatch):
    """The same files with a buffer 1000 times as long: 100 MB of it, which take 10 ms to copy."""

    def fastest(context_length):
        read = onnx_contract.read_numbers
        monkeypatch.setattr(
            onnx_contract,
            "read_numbers",
            lambda graph: read(graph) | {"context_length": context_length},
        )
        backend = ONNX.open()
        monkeypatch.undo()
        times = []
        for _ in range(30):
            start = time.perf_counter()
            backend.verify(TOKEN_IDS[:1], 10)
            backend.draft(1, np.zeros(D, np.float32), 10)
            times.append(time.perf_counter() - start)
        num_bytes = sum(rows.nbytes for rows in ONNX.kv(backend).values())
        backend.close()
        return min(times), num_bytes

    short, _ = fastest(32)
    long, num_bytes = fastest(1 << 20)
    assert num_bytes > 100e6
    assert long < short + 2e-3


@pytest.mark.parametrize(("release", "warnings"), [("1.32.7", 0), ("1.33.0", 1)])
def test_a_release_that_was_not_tested_is_warned_of_once(monkeypatch, caplog, release, warnings):
    monkeypatch.setattr("onnxruntime.__version__", release)
    for _ in range(2):
        Runtime(1, [CPU])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == warnings
    assert all(f"onnxruntime {release} was not tested" in line for line in said)
