import re
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends.litert.model import LoadedModel
from runtime_py.errors import RunError
from runtime_py.formats.flatbuffer import FlatbufferError
from runtime_py.formats.litertlm import Section, find_model, read_sections
from runtime_py.formats.tflite import read_model, read_weights

pytest.importorskip("ai_edge_litert")

BUNDLE = Path(__file__).parents[1] / "toy.litertlm"
BEGIN = 16384  # bytes before the section in the files made here, as in a .litertlm
TABLE_BYTES = 48 * 16 * 4  # the toy embedding table


def embedder_bytes():
    section = find_model(read_sections(BUNDLE), "tf_lite_embedder")
    return BUNDLE.read_bytes()[section.begin : section.end]


def with_table_outside(offset, size_bytes=TABLE_BYTES):
    """The toy embedder's flatbuffer with its table moved out of it, and the table."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = schema.ModelT.InitFromPackedBuf(bytearray(embedder_bytes()), 0)
    (buffer,) = (b for b in model.buffers if b.data is not None and len(b.data) == TABLE_BYTES)
    table = bytes(bytearray(buffer.data))
    buffer.data, buffer.offset, buffer.size = None, offset, size_bytes
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)), table


def load(path, num_bytes):
    section = Section(
        data_type="tflite_model", model_type="tf_lite_embedder", begin=BEGIN, end=BEGIN + num_bytes
    )
    return LoadedModel(path, section, num_threads=1)


def row(model, token_id):
    signature = model.bind(model.signatures.only(), {})
    signature.inputs["token_ids"][...] = token_id
    signature.run()
    return signature.outputs["embeddings"].reshape(-1).copy()


def test_weights_beyond_two_gigabytes_are_found_and_not_copied(tmp_path):
    offset = 3 << 30
    root, table = with_table_outside(offset)
    path = tmp_path / "large"
    with path.open("wb") as file:  # sparse: a few pages on disk
        file.seek(BEGIN)
        file.write(root)
        file.seek(BEGIN + offset)
        file.write(table)
    model = load(path, offset + len(table))
    expected = np.frombuffer(table, np.float32).reshape(48, 16) * np.sqrt(np.float32(16))
    np.testing.assert_array_equal(row(model, 41), expected[41])
    statistics = Path("/proc/self/smaps")
    if statistics.exists():
        mapped = re.findall(r"/large\n(?:.*\n)*?Anonymous:\s+(\d+) kB", statistics.read_text())
        assert sum(int(size_kb) for size_kb in mapped) == 0
    model.close()


def test_weights_outside_the_section_are_refused(tmp_path):
    root, table = with_table_outside(4096, size_bytes=10_000)
    path = tmp_path / "cut"
    path.write_bytes(bytes(BEGIN) + root + bytes(4096 - len(root)) + table)
    with pytest.raises(RunError, match=r"weight \d+ ends at byte 14096 of a section of 7168"):
        load(path, 4096 + len(table))


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\xff" * 64, b"\xff\xff\x00\x00TFL3"])
def test_what_is_not_a_model_is_refused(content):
    with pytest.raises(FlatbufferError):
        read_weights(read_model(content), len(content))


def test_every_cut_of_a_model_is_refused_or_checked():
    content = embedder_bytes()
    read_weights(read_model(content), len(content))
    for length in range(0, 400):
        with pytest.raises(FlatbufferError):
            read_weights(read_model(content[:length]), length)


def test_a_run_that_fails_is_one_line(tmp_path):
    path = tmp_path / "embedder"
    path.write_bytes(bytes(BEGIN) + embedder_bytes())
    model = load(path, len(embedder_bytes()))
    with pytest.raises(RunError, match="embedder: does not run: ") as raised:
        row(model, 10**6)  # no such row; the backend checks token ids before it gets here
    assert "\n" not in str(raised.value)


def test_outputs_are_filled_in_place(tmp_path):
    path = tmp_path / "embedder"
    path.write_bytes(bytes(BEGIN) + embedder_bytes())
    model = load(path, len(embedder_bytes()))
    signature = model.bind(model.signatures.only(), {})
    rows = signature.outputs["embeddings"]
    signature.inputs["token_ids"][...] = 1
    signature.run()
    first = rows.copy()
    signature.inputs["token_ids"][...] = 2
    signature.run()
    assert (rows != first).any()
    del signature
    model.close()
    assert rows.any()  # the array belongs to Python and outlives the model
