"""Folders, files and tensors that are refused, with one clear line each."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.checkpoint.files import SINGLE_FILE, open_tensors
from exporter.checkpoint.reader import read_checkpoint, read_drafter
from tests.exporter import tiny_models
from tests.exporter.damage import WEIGHTS, complaint, edit_config, edit_tensors, error_of
from tests.exporter.tiny_models import E2B

# Folders


@pytest.mark.parametrize("name", ["nowhere", "x" * 5000, "\0", "a\nb"], ids=ascii)
def test_no_such_folder(tmp_path, name):
    assert "no such folder" in error_of(read_checkpoint, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (WEIGHTS, b"x", "a file of weights"),
        ("gemma.Q4_K_M.gguf", b"x", "a GGUF file"),
        ("sha256-0123", b"GGUF\x03", "a GGUF file"),
        ("model", b"LITERTLM\x01", "exported already"),
        ("model.litertlm", b"", "exported already"),
        ("model.pte", b"x", "exported already"),
        ("decoder.onnx", b"x", "exported already"),
        ("pytorch_model.bin", b"x", "a pickle"),
        ("gemma.pt", b"x", "a pickle"),
        ("config.json", b"{}", "a file"),
        (WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
    ],
)
def test_a_file_instead_of_a_folder(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    message = error_of(read_checkpoint, tmp_path / name)
    assert said in message
    assert "needed the folder of a Gemma 4 checkpoint" in message


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_git_lfs_pointers_are_no_files(target, name):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (target / name).write_text(pointer)
    message = error_of(read_checkpoint, target)
    assert f"{name}: a git-lfs pointer" in message
    assert "`git lfs pull`" in message


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("adapter_config.json", "a LoRA adapter"),
        ("model.gguf", "a GGUF"),
        ("manifest.json", "exported already"),
        ("readme.md", "no config.json"),
    ],
)
def test_a_folder_that_is_something_else(tmp_path, file, said):
    (tmp_path / file).write_text("{}")
    assert said in error_of(read_checkpoint, tmp_path)


def test_another_architecture(target):
    edit_config(target, model_type="llama")
    message = error_of(read_checkpoint, target)
    assert "'llama'" in message
    assert "gemma4" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_a_pickle_is_not_opened(target, name):
    (target / WEIGHTS).rename(target / name)
    message = error_of(read_checkpoint, target)
    assert f"{name} is a pickle" in message
    assert "safetensors" in message


def test_no_weights(target):
    (target / WEIGHTS).unlink()
    assert f"no {WEIGHTS}" in error_of(read_checkpoint, target)


# Files


@pytest.mark.parametrize("kept", [0, 7, 8, 500, -1])
def test_a_truncated_file(target, kept):
    path = target / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    message = error_of(read_checkpoint, target)
    assert WEIGHTS in message
    assert "download" in message


def rewrite_header(path: Path, header: bytes | dict[str, Any], data: bytes = b"") -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfe",
        b"not json",
        b"[]",
        b"[" * 100_000,
        {"x": None},
        {"x": {}},
        {"x": {"dtype": "F32", "shape": [1]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"x": {"dtype": 7, "shape": [1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 2**126]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {"x\nx" * 90: {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
    ],
    ids=lambda header: str(header)[:60],
)
def test_a_corrupt_header(target, header):
    rewrite_header(target / WEIGHTS, header, b"\0\0\0\0")
    assert WEIGHTS in error_of(read_checkpoint, target)


def test_a_header_longer_than_the_file(target):
    (target / WEIGHTS).write_bytes((2**60).to_bytes(8, "little") + b"{}")
    assert "truncated or not a safetensors file" in error_of(read_checkpoint, target)


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def test_a_tensor_twice_in_the_header(target):
    header, data = read_header(target / WEIGHTS)
    entry = json.dumps({"model.norm.weight": header["model.norm.weight"]})[1:-1]
    text = "{" + entry + "," + json.dumps(header)[1:]
    rewrite_header(target / WEIGHTS, text.encode(), data)
    assert "duplicate key 'model.norm.weight'" in error_of(read_checkpoint, target)


def test_two_tensors_on_the_same_bytes(target):
    header, data = read_header(target / WEIGHTS)
    norm = "model.layers.0.input_layernorm.weight"
    header[norm]["data_offsets"] = header["model.norm.weight"]["data_offsets"]
    rewrite_header(target / WEIGHTS, header, data)
    message = error_of(read_checkpoint, target)
    assert "begins at byte" in message
    assert "the tensor before it ends at" in message


def test_a_file_longer_than_its_header_says(target):
    with (target / WEIGHTS).open("ab") as file:
        file.write(b"more")
    assert "longer than its header says" in error_of(read_checkpoint, target)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny_models.save(tiny_models.target_model(E2B, 1), tmp_path / "sharded", "20KB")


def edit_index(folder: Path, weight_map: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = weight_map(index["weight_map"]) if callable(weight_map) else weight_map
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/passwd", "a\\b", "..", "", 7, None, "x" * 999, "\ud800"],
)
def test_a_shard_outside_the_folder(sharded, shard):
    edit_index(sharded, lambda names: names | {"model.norm.weight": shard})
    message = error_of(read_checkpoint, sharded)
    assert "inside the folder" in message
    assert "model.norm.weight" in message


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map(sharded, weight_map):
    edit_index(sharded, weight_map)
    assert "no weight_map" in error_of(read_checkpoint, sharded)


def test_a_missing_shard(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"names {shard.name}" in error_of(read_checkpoint, sharded)


def test_shards_that_lost_their_index(sharded):
    names = read_checkpoint(sharded).names()
    (sharded / "model.safetensors.index.json").unlink()
    assert read_checkpoint(sharded).names() == names
    first, second = sorted(path.name for path in sharded.glob("*.safetensors"))[:2]
    (sharded / second).rename(sharded / "other")
    assert f"{second} is missing" in error_of(read_checkpoint, sharded)
    (sharded / "other").rename(sharded / second)
    shutil.copy(sharded / first, sharded / "model-00001-of-00002.safetensors")
    assert "model-00001-of-00002.safetensors belongs to" in error_of(read_checkpoint, sharded)


def test_weights_under_a_name_of_their_own(target):
    (target / WEIGHTS).rename(target / "gemma\x1b[2J.safetensors")
    assert "found gemma\N{REPLACEMENT CHARACTER}[2J.safetensors" in error_of(
        read_checkpoint, target
    )


def test_a_tensor_the_index_promises(sharded):
    first = sorted(path.name for path in sharded.glob("*.safetensors"))[0]
    edit_index(sharded, lambda names: names | {"model.ghost.weight": first})
    assert "model.ghost.weight" in error_of(read_checkpoint, sharded)


def test_a_tensor_the_index_forgets(sharded):
    """A reader that goes by the index would make up its numbers."""

    def forget(names: dict[str, str]) -> dict[str, str]:
        return {name: shard for name, shard in names.items() if name != "model.norm.weight"}

    edit_index(sharded, forget)
    assert "does not name model.norm.weight" in error_of(read_checkpoint, sharded)


def test_a_tensor_in_another_shard_than_the_index_says(sharded):
    first, second = sorted(path.name for path in sharded.glob("*.safetensors"))[:2]

    def swap(names: dict[str, str]) -> dict[str, str]:
        name = next(name for name, shard in names.items() if shard == first)
        return names | {name: second}

    edit_index(sharded, swap)
    assert "which does not hold it" in error_of(read_checkpoint, sharded)


def test_a_tensor_twice_in_the_index(sharded):
    path = sharded / "model.safetensors.index.json"
    entry = '"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors",'
    path.write_text(path.read_text().replace('"weight_map": {', entry))
    assert "duplicate key 'model.norm.weight'" in error_of(read_checkpoint, sharded)


def test_the_same_tensor_in_two_shards(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    assert name in error_of(read_checkpoint, sharded)


# Tensors


def test_a_missing_tensor(target):
    edit_tensors(target, lambda tensors: tensors.pop("model.layers.2.self_attn.k_norm.weight"))
    assert "no tensor layers.2.self_attn.k_norm.weight" in error_of(read_checkpoint, target)


def test_unknown_tensors(target):
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.lora_a.weight"] = torch.zeros(2)
        tensors["model.layers.1.lora_a.weight"] = torch.zeros(2)

    edit_tensors(target, add)
    message = error_of(read_checkpoint, target)
    assert "unknown tensor layers.0.lora_a.weight and 1 more (2 in all)" in message


def renamed(folder: Path, prefix: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    edit_tensors(folder, change)


@pytest.mark.parametrize(
    "prefix",
    ["model.", "module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "module.module."],
)
def test_names_that_a_trainer_wrapped(target, prefix):
    expected = read_checkpoint(target)
    renamed(target, prefix)
    found = read_checkpoint(target)
    assert found.names() == expected.names()
    assert torch.equal(found.tensor("norm.weight"), expected.tensor("norm.weight"))


def test_layers_compiled_one_by_one(target):
    names = read_checkpoint(target).names()

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".layers." in name]:
            parts = name.split(".")
            tensors[".".join([*parts[:3], "_orig_mod", *parts[3:]])] = tensors.pop(name)

    edit_tensors(target, change)
    assert read_checkpoint(target).names() == names


def test_names_of_another_kind_are_said(target):
    renamed(target, "transformer\x1b.")
    message = error_of(read_checkpoint, target)
    assert "no tensor embed_tokens.weight and" in message
    assert "found transformer\N{REPLACEMENT CHARACTER}.model." in message


def test_an_adapter_that_is_not_merged(target):
    name = "model.layers.0.self_attn.q_proj"
    edit_tensors(
        target, lambda tensors: tensors.update({f"{name}.lora_A.default.weight": torch.ones(2, 2)})
    )
    assert "merge_and_unload" in error_of(read_checkpoint, target)


def test_one_tensor_under_two_names(target):
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"].clone()

    edit_tensors(target, add)
    assert "are the same tensor" in error_of(read_checkpoint, target)


def test_a_wrong_shape(target):
    edit_tensors(target, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(31)}))
    message = error_of(read_checkpoint, target)
    assert "norm.weight has shape [31]" in message
    assert "[32]" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64])
def test_weights_that_are_not_floats(target, dtype):
    edit_tensors(
        target, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(32, dtype=dtype)})
    )
    message = error_of(read_checkpoint, target)
    assert "norm.weight is" in message
    assert "BF16" in message


def test_a_tied_head_that_differs(target):
    edit_tensors(target, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(64, 32)}))
    message = error_of(read_checkpoint, target)
    assert "tie_word_embeddings" in message


@pytest.mark.parametrize("seed", range(60))
def test_damage_gives_one_line_or_nothing(originals, tmp_path, seed):
    """Bytes changed anywhere: a checkpoint that still reads, or an ExportError."""
    draw = random.Random(seed)
    shutil.copytree(originals[1], tmp_path / "damaged")
    path = tmp_path / "damaged" / draw.choice(["config.json", WEIGHTS])
    data = bytearray(path.read_bytes())
    header = min(len(data), 2000)
    for _ in range(draw.randint(1, 3)):
        data[draw.randrange(header)] = draw.choice(b'\0\xff{}[]"0123456789-,:ex')
    path.write_bytes(data)
    complaint(read_drafter, tmp_path / "damaged", read_checkpoint(originals[0]))


def mapped_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^RssFile:\s*(\d+) kB", status, re.M)[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts pages as Linux does")
def test_what_was_read_does_not_stay_in_memory(tmp_path):
    """A file of 40 MB: as long as its pages are mapped, they count as memory of the process."""
    table = torch.arange(10_000_000, dtype=torch.float32).reshape(1000, -1)
    save_file({"table": table}, tmp_path / SINGLE_FILE)
    stored = open_tensors(tmp_path)["table"]
    before = mapped_kb()
    assert torch.equal(stored.rows(0, 1000), table)
    assert mapped_kb() > before + 35_000
    stored.release(0, 1000)
    assert mapped_kb() < before + 1000
    for row in range(0, 1000, 3):  # one by one: the kernel maps neighbours of what is read
        assert torch.equal(stored.rows(row, row + 1)[0], table[row])
        stored.release(row, row + 1)
    assert mapped_kb() < before + 1000
