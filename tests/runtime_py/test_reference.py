import io
import zipfile

import numpy as np
import pytest

from runtime_py.errors import RunError
from runtime_py.reference import acceptance, read_reference, write_reference
from tests.runtime_py.bundles import VOCAB_SIZE, scripted_reference
from tests.runtime_py.scripted_backend import ScriptedBackend


@pytest.fixture(scope="module")
def reference():
    return scripted_reference(ScriptedBackend(vocab_size=VOCAB_SIZE))


def test_what_is_written_is_read_again(reference, tmp_path):
    path = tmp_path / "reference.npz"
    write_reference(path, reference)
    again = read_reference(path)
    assert again.prompts == reference.prompts
    assert [ids.tolist() for ids in again.prompt_ids] == [
        ids.tolist() for ids in reference.prompt_ids
    ]
    for name in ("greedy_ids", "probe_ids", "probe_logits", "draft_ids"):
        np.testing.assert_array_equal(getattr(again, name), getattr(reference, name))
    assert again.logit_scale == pytest.approx(reference.logit_scale)


def test_refuses_what_is_no_reference(reference, tmp_path):
    path = tmp_path / "reference.npz"
    write_reference(path, reference)
    whole = path.read_bytes()
    for broken in (b"", b"not a zip", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(RunError, match="not a recorded reference"):
            read_reference(path)


def test_refuses_compressed_members_that_could_unpack_to_anything(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez_compressed(path, greedy_ids=np.zeros((1000, 1000)))
    with pytest.raises(RunError, match="compressed members"):
        read_reference(path)


def test_refuses_pickles(tmp_path):
    path = tmp_path / "reference.npz"
    array = io.BytesIO()
    np.save(array, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("prompts.npy", array.getvalue())
    with pytest.raises(RunError, match="not a recorded reference"):
        read_reference(path)


def test_acceptance_counts_prefixes_only():
    greedy = np.array([[1, 2, 3, 4, 5]], np.int32)
    drafts = np.array([[[2, 3], [3, 9], [9, 5]]], np.int32)
    np.testing.assert_allclose(acceptance(drafts, greedy), [2 / 3, 1 / 3])
