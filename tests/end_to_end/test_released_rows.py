"""Rows behind the window are given back, on every runtime, and no number changes by it."""

import json
import mmap
import os
import shutil
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.config import GraphShapes
from exporter.pipeline import LOWERINGS, Inputs, lower
from exporter.quantize import load_recipe
from exporter.text.files import read_text_files
from runtime_py.backends import SessionOptions
from runtime_py.backends.load import BACKENDS
from runtime_py.bundle.kv_rows import MARGIN, STEP, resident_rows
from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session, Stops
from tests.end_to_end.conftest import ROOT, LoadedBundle
from tests.exporter.tiny_models import Shape, save_pair
from tests.runtime_py.resident import resident_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives rows back")

WINDOW, CONTEXT = 40, 4096
LONG = Shape(
    layers="sf", vocab_size=128, hidden_size=32, intermediate_size=32, heads=2, kv_heads=2,
    global_kv_heads=1, head_dim=64, global_head_dim=64, window=WINDOW, tied=False,
    drafter_layers="sf", drafter_hidden=16,
)  # fmt: skip
HEAD_ROW_BYTES = 256  # sixteen rows are a page
SHAPES = GraphShapes(prefill_lengths=(128,), verify_widths=(4,), cache_length=CONTEXT)
READER = {"litert": "litert.backend", "executorch": "executorch.contract", "onnx": "onnx.contract"}
SAMPLING = SamplingParams(
    temperature=1.0, top_k=0, top_p=1.0, seed=3
)  # greedy, a random model repeats itself
FAR = 1500  # tokens


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folders = save_pair(LONG, 1, tmp_path_factory.mktemp("long"))
    target = read_checkpoint(folders[0])
    return target, read_drafter(folders[1], target)


@pytest.fixture(scope="module")
def open_backend(checkpoints, tiny, runtime, tmp_path_factory):
    """Opens the model on a runtime."""
    folder, recipe = tmp_path_factory.mktemp(runtime), load_recipe("float32")
    inputs = Inputs(*checkpoints, read_text_files(tiny.model), [], recipe, {})
    path = folder / lower(LOWERINGS[runtime], inputs, SHAPES, folder)
    options = SessionOptions(num_threads=1)
    return lambda: BACKENDS[runtime](path, options)


@pytest.fixture
def releasing(open_backend):
    with closing(open_backend()) as backend:
        yield backend


@pytest.fixture
def keeping(open_backend, runtime, monkeypatch):
    """The same from a file that does not say which layers slide."""
    monkeypatch.setattr(f"runtime_py.backends.{READER[runtime]}.KEY", "unsaid")
    with closing(open_backend()) as backend:
        yield backend


def generate(session, prompt_ids, num_tokens):
    steps = session.generate(prompt_ids, SAMPLING, Stops(max_new_tokens=num_tokens), 3)
    return [token_id for step in steps for token_id in step.token_ids]


def buffers(backend, *, slides):
    return [buffer for buffer in backend._pages._buffers if buffer.slides == slides]


def test_every_number_is_the_same_with_rows_given_back(releasing, keeping):
    ids = np.random.default_rng(1).integers(0, LONG.vocab_size, CONTEXT).tolist()
    widths = [1, 4, 2, 3, 1, 1, 4]
    for backend in (releasing, keeping):
        backend.prefill(ids[:300], 0)
    position, turn = 300, 0
    while position < FAR:
        if turn % 60 == 59:  # a long prompt in between, in several chunks
            for backend in (releasing, keeping):
                backend.prefill(ids[position : position + 331], position)
            position += 331
        width = widths[turn % len(widths)]
        text = ids[position : position + width]
        found = [array.copy() for array in releasing.verify(text, position)]
        for array, wanted in zip(found, keeping.verify(text, position), strict=True):
            np.testing.assert_array_equal(array, wanted)
        position += 1 + turn % width  # some were refused
        hidden = found[1][0]
        drafted = [array.copy() for array in releasing.draft(7, hidden, position)]
        for array, wanted in zip(drafted, keeping.draft(7, hidden, position), strict=True):
            np.testing.assert_array_equal(array, wanted)
        turn += 1
    assert releasing.resumable_from >= FAR - MARGIN - STEP - 8
    assert keeping.resumable_from == 0


def test_a_prompt_that_leaves_the_last_text_early_says_what_a_new_session_says(releasing, keeping):
    session = Session(releasing, CONTEXT)
    text = [5, 6, 7, *generate(session, [5, 6, 7], 700)]
    assert text[3:] == generate(Session(keeping, CONTEXT), [5, 6, 7], 700)
    for num_kept in (releasing.resumable_from, 100, 2):
        prompt = [*text[:num_kept], 9]
        answer = generate(session, prompt, 50)
        assert answer == generate(Session(keeping, CONTEXT), prompt, 50)
        text = [*prompt, *answer]


def test_resident_rows_are_those_in_sight(releasing, runtime):
    sliding, full = (buffers(releasing, slides=slides) for slides in (True, False))
    assert sum(buffer.size_bytes for buffer in sliding) == 2 * 2 * HEAD_ROW_BYTES * CONTEXT
    assert resident_bytes([*sliding, *full]) == 0
    generate(Session(releasing, CONTEXT), [1, 2, 3], FAR)
    num_rows = resident_rows(WINDOW, CONTEXT) + 4  # of the last call
    edges = 2 * mmap.PAGESIZE
    most = sum(b.num_heads * (num_rows * b.row_bytes + edges) for b in sliding)
    assert most / 2 <= resident_bytes(sliding) <= most
    if runtime != "executorch":  # whose full layers are not told apart
        assert [buffer.size_bytes for buffer in full] == [HEAD_ROW_BYTES * CONTEXT] * 2
        rows_bytes = sum((FAR + 3) * buffer.row_bytes + edges for buffer in full)
        # LiteRT's values lie by column, which may begin and end within a page.
        columns_bytes = LONG.global_head_dim * edges if runtime == "litert" else 0
        assert rows_bytes / 2 <= resident_bytes(full) <= rows_bytes + columns_bytes
    Session(releasing, CONTEXT)._prefill([4, 5, 6])  # another sequence
    assert resident_bytes(sliding) <= sum(b.num_heads for b in sliding) * 2 * edges


def test_a_file_that_does_not_say_what_slides_is_not_resident_at_first_either(keeping, runtime):
    if runtime == "executorch":
        assert buffers(keeping, slides=False) == []  # nobody told it the names
        return
    keys_and_values = buffers(keeping, slides=False)
    assert len(keys_and_values) == 4
    assert resident_bytes(keys_and_values) == 0


def test_loading_again_and_again_leaves_no_mappings(export_tiny, runtime):
    """A server loads often, and a process may have 65530. glibc's heaps of threads are two each."""
    command = [sys.executable, "-m", "tests.runtime_py.many_loads", export_tiny("int8"), runtime]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    settled, later = map(int, done.stdout.split())
    assert later - settled <= 4


def test_what_a_manifest_claims_of_sliding_layers_changes_nothing(export_tiny, runtime, tmp_path):
    """The recorded texts, one of which passes the window, with a window that is no layer's."""
    folder = shutil.copytree(export_tiny("float32"), tmp_path / "bundle", copy_function=os.link)
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    values["model"]["sliding"] = {"window": 1, "layers": [0, 1, 2]}
    (folder / "manifest.json").write_text(json.dumps(values))
    loaded = LoadedBundle(folder, runtime)
    with closing(loaded):
        reference = loaded.reference
        index = int(np.argmax([len(ids) for ids in reference.prompt_ids]))
        assert len(reference.prompt_ids[index]) > 128 + 1 + STEP  # the tiny model's window
        found = loaded.generate(reference.prompt_ids[index])
    assert found == reference.greedy_ids[index].tolist()
