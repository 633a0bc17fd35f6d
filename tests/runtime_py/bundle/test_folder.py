"""What a user may name where a bundle is asked for."""

import pytest

from runtime_py.bundle.bundle import Bundle
from runtime_py.errors import RunError
from tests.runtime_py.bundles import write_fake_bundle


@pytest.mark.parametrize("name", ["model.litertlm", "manifest.json", "tokenizer.json"])
def test_a_file_of_a_bundle_names_its_folder(tmp_path, name):
    folder = write_fake_bundle(tmp_path / "bundle")
    opened = Bundle.open(folder / name)
    assert opened.folder == folder
    assert opened.manifest == Bundle.open(folder).manifest


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("some.gguf", b"GGUF\3\0\0\0", "a GGUF file, which llama.cpp runs"),
        ("renamed.bin", b"GGUF\3\0\0\0", "a GGUF file, which llama.cpp runs"),
        ("model.litertlm", b"LITERTLM\1\0", "a .litertlm without manifest.json beside it"),
        ("model.pte", b"\0\0\0\0ET12", "a .pte without manifest.json beside it"),
        ("model.onnx", b"", "an .onnx without manifest.json beside it"),
        ("model.safetensors", b"\x08", "weights of a checkpoint"),
        ("pytorch_model.bin", b"PK", "weights of a checkpoint"),
        ("model.tflite", b"", "a .tflite without manifest.json beside it"),
        ("model.litertlm", b"version https://git-lfs.github.com/spec/v1", "run `git lfs pull`"),
        ("notes.txt", b"", "give the folder that gemma-export made"),
    ],
)
def test_another_file_is_called_what_it_is(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name}: .*{said}"):
        Bundle.open(tmp_path / name)


def test_a_checkpoint_is_called_what_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"a checkpoint .* make a bundle of it with gemma-export"):
        Bundle.open(tmp_path)
