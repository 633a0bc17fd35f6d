import io
import zipfile

import numpy as np
import pytest

from runtime_py.bundle.reference import acceptance, read_reference, write_reference
from runtime_py.errors import RunError
from tests.runtime_py.bundles import VOCAB_SIZE, scripted_reference
from tests.runtime_py.scripted_backend import ScriptedBackend


@pytest.fixture(scope="module")
def reference():
    return scripted_reference(ScriptedBackend(vocab_size=VOCAB_SIZE))


def test_what_is_written_is_read_again(reference, tmp_path):
    path = tmp_path / "reference.npz"
    write_reference(path, reference)
    again = read_reference(path, VOCAB_SIZE, 128)
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
            read_reference(path, VOCAB_SIZE, 128)


def test_refuses_compressed_members_that_could_unpack_to_anything(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez_compressed(path, greedy_ids=np.zeros((1000, 1000)))
    with pytest.raises(RunError, match="compressed members"):
        read_reference(path, VOCAB_SIZE, 128)


def test_refuses_pickles(tmp_path):
    path = tmp_path / "reference.npz"
    array = io.BytesIO()
    np.save(array, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("prompts.npy", array.getvalue())
    with pytest.raises(RunError, match="not a recorded reference"):
        read_reference(path, VOCAB_SIZE, 128)


def arrays_of(reference, tmp_path):
    """What a reference is written as."""
    write_reference(tmp_path / "good.npz", reference)
    with np.load(tmp_path / "good.npz") as arrays:
        return dict(arrays)


def with_value(array, value):
    """The same with one other number."""
    changed = array.copy()
    changed.flat[0] = value
    return changed


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("logit_scale", lambda _: np.float32(np.nan), "a scale of nan"),
        ("logit_scale", lambda _: np.float32(np.inf), "a scale of inf"),
        ("logit_scale", lambda _: np.float32(0), "a scale of 0"),
        ("logit_scale", lambda a: -a, "a scale of -"),
        ("logit_scale", lambda a: 9 * a, "a scale of"),
        ("logit_scale", lambda a: np.stack([a, a]), "several logit scales"),
        ("logit_scale", lambda a: a.astype(np.float64), "no array of <f4"),
        ("probe_logits", lambda a: with_value(a, np.nan), "logits up to nan"),
        ("probe_logits", lambda a: with_value(a, np.inf), "logits up to inf"),
        ("probe_logits", lambda a: 0 * a, "a scale of"),
        ("probe_logits", lambda a: a[..., :1], "do not fit each other"),
        ("probe_logits", lambda a: np.asfortranarray(a), "no array of <f4"),
        ("greedy_ids", lambda a: with_value(a, VOCAB_SIZE), "token 300 of a vocabulary of 300"),
        ("greedy_ids", lambda a: with_value(a, -1), "token -1 of"),
        ("greedy_ids", lambda a: a[:, :0], "do not fit each other"),
        ("greedy_ids", lambda a: a[0], "do not fit each other"),
        ("probe_ids", lambda a: with_value(a, 2**31 - 1), "token 2147483647 of"),
        ("draft_ids", lambda a: with_value(a, -(2**31)), "token -2147483648 of"),
        ("draft_ids", lambda a: a[:, :0], "do not fit each other"),
        ("draft_ids", lambda a: np.repeat(a, 2, axis=1), "do not fit each other"),
        ("prompt_ids", lambda a: with_value(a, VOCAB_SIZE), "token 300 of"),
        ("prompt_ids", lambda a: a[:-1], "prompts of other lengths"),
        ("prompt_ids", lambda a: a.astype(object), "no array of <i4"),
        ("prompt_lengths", lambda _: np.int32([9, -1]), "prompts without tokens"),
        ("prompt_lengths", lambda a: a[:0], "prompts without tokens"),
        ("prompts", lambda _: np.frombuffer(b"{}", np.uint8), "prompts that are no texts"),
        ("prompts", lambda _: np.frombuffer(b"[1, 2]", np.uint8), "prompts that are no texts"),
        ("prompts", lambda _: np.frombuffer(b'["one"]', np.uint8), "do not fit each other"),
        ("prompts", lambda _: np.frombuffer(b"[" * 99_999, np.uint8), "nested deeper"),
        ("prompts", lambda _: np.frombuffer(b"\xff", np.uint8), "codec"),
    ],
)
def test_refuses_what_no_recording_has(reference, tmp_path, name, change, said):
    arrays = arrays_of(reference, tmp_path)
    np.savez(tmp_path / "reference.npz", **{**arrays, name: change(arrays[name])})
    with pytest.raises(RunError, match=said) as raised:
        read_reference(tmp_path / "reference.npz", VOCAB_SIZE, 128)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_reference_without_drafts_is_one_of_a_bundle_without_drafter(reference, tmp_path):
    arrays = arrays_of(reference, tmp_path)
    np.savez(tmp_path / "some.npz", **{**arrays, "draft_ids": arrays["draft_ids"][:, :, :0]})
    assert read_reference(tmp_path / "some.npz", VOCAB_SIZE, 128).draft_ids.shape[2] == 0


def test_refuses_texts_longer_than_the_context(reference, tmp_path):
    write_reference(tmp_path / "some.npz", reference)
    with pytest.raises(RunError, match="a text of 16 tokens, the context holds 15"):
        read_reference(tmp_path / "some.npz", VOCAB_SIZE, 15)


@pytest.mark.parametrize(
    ("found", "other"),
    [
        (b"'shape': (2, 12), ", b"'shape': (9999999999, 99999999), "),  # 4 EB
        (b"'shape': (2, 12), ", b"'shape': (-2, -12), "),
        (b"'descr': '<i4'", b"'descr': '|O'"),
        (b"'fortran_order': False", b"'fortran_order': True "),
        (b"NUMPY\x01", b"NUMPY\x03"),
    ],
)
def test_a_header_is_not_believed(reference, tmp_path, found, other):
    arrays = arrays_of(reference, tmp_path)
    with zipfile.ZipFile(tmp_path / "some.npz", "w") as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            data = file.getvalue()
            archive.writestr(f"{name}.npy", data.replace(found, other.ljust(len(found))))
    with pytest.raises(RunError, match=r"is no array of|its shape asks for"):
        read_reference(tmp_path / "some.npz", VOCAB_SIZE, 128)


@pytest.mark.parametrize("flags", [0x01, 0x41, 0x20, 0x2000])
def test_flags_of_a_zip_that_nothing_of_ours_has(reference, tmp_path, flags):
    """Encrypted, patched, masked: in every member's two headers."""
    path = tmp_path / "some.npz"
    write_reference(path, reference)
    content = bytearray(path.read_bytes())
    for start, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(start)
        while at >= 0:
            content[at + place : at + place + 2] = flags.to_bytes(2, "little")
            at = content.find(start, at + 1)
    path.write_bytes(content)
    with pytest.raises(RunError, match="not a recorded reference"):
        read_reference(path, VOCAB_SIZE, 128)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_array_twice(reference, tmp_path):
    path = tmp_path / "some.npz"
    write_reference(path, reference)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("greedy_ids.npy", archive.read("greedy_ids.npy"))
    with pytest.raises(RunError, match="the same array twice"):
        read_reference(path, VOCAB_SIZE, 128)


def test_acceptance_counts_prefixes_only():
    greedy = np.array([[1, 2, 3, 4, 5]], np.int32)
    drafts = np.array([[[2, 3], [3, 9], [9, 5]]], np.int32)
    np.testing.assert_allclose(acceptance(drafts, greedy), [2 / 3, 1 / 3])
