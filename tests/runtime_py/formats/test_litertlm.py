import contextlib
import random
import struct
from pathlib import Path

import pytest

from runtime_py.errors import RunError
from runtime_py.formats.litertlm import Section, find_model, read_sections

BUNDLE = Path(__file__).parents[1] / "backends" / "toy.litertlm"


def patched(tmp_path, offset, replacement):
    content = bytearray(BUNDLE.read_bytes())
    content[offset : offset + len(replacement)] = replacement
    path = tmp_path / "patched.litertlm"
    path.write_bytes(content)
    return path


def header_end():
    return struct.unpack_from("<Q", BUNDLE.read_bytes(), 24)[0]


def test_the_official_reader_sees_the_same_sections():
    peek = pytest.importorskip("litert_lm_builder.litertlm_peek")
    import io

    metadata = peek.read_litertlm_header(str(BUNDLE), io.StringIO()).SectionMetadata()
    entries = [metadata.Objects(index) for index in range(metadata.ObjectsLength())]
    expected = [
        (peek.get_model_type(entry), entry.BeginOffset(), entry.EndOffset()) for entry in entries
    ]
    found = [(section.model_type, section.begin, section.end) for section in read_sections(BUNDLE)]
    assert found == expected


def test_model_sections_hold_models():
    content = BUNDLE.read_bytes()
    for section in read_sections(BUNDLE):
        assert section.data_type == "tflite_model"
        assert content[section.begin + 4 : section.begin + 8] == b"TFL3"


@pytest.mark.parametrize("num_bytes", [0, 7, 8, 31, 32, 40, 200, 20_000, 168_000])
def test_a_truncated_file_is_refused(tmp_path, num_bytes):
    path = tmp_path / "cut.litertlm"
    path.write_bytes(BUNDLE.read_bytes()[:num_bytes])
    with pytest.raises(RunError, match=r"cut\.litertlm: "):
        read_sections(path)


def test_a_damaged_header_is_refused_or_read_within_the_file(tmp_path):
    end, file_bytes = header_end(), BUNDLE.stat().st_size
    for seed in range(500):
        rng = random.Random(seed)
        content = bytearray(BUNDLE.read_bytes())
        for _ in range(rng.choice([1, 4])):
            position = rng.randrange(24, end)
            word = rng.choice([rng.randbytes(4), b"\xff\xff\xff\xff", b"\x00\x00\x00\x80"])
            content[position : position + 4] = word
        path = tmp_path / "damaged.litertlm"
        path.write_bytes(content)
        sections = ()
        with contextlib.suppress(RunError):
            sections = read_sections(path)
        assert all(0 < section.begin <= section.end <= file_bytes for section in sections)


def test_another_format_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"not a \.litertlm file"):
        read_sections(patched(tmp_path, 0, b"GGUF"))


def test_another_major_version_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"version 2\.\d+, this runtime reads 1\.x"):
        read_sections(patched(tmp_path, 8, struct.pack("<I", 2)))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(RunError, match="No such file"):
        read_sections(tmp_path / "none.litertlm")


def test_two_sections_of_one_type_are_refused():
    section = Section(data_type="tflite_model", model_type="tf_lite_embedder", begin=1, end=2)
    assert find_model((section,), "tf_lite_embedder") is section
    assert find_model((section,), "tf_lite_mtp_drafter") is None
    with pytest.raises(RunError, match="2 sections named tf_lite_embedder"):
        find_model((section, section), "tf_lite_embedder")
