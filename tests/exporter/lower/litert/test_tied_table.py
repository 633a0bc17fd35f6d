"""The tied embedding lies once in a .litertlm, and the embedder still finds it."""

import json

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from litert_lm_builder import litertlm_builder
from torch import nn

from exporter.lower.litert.inject import inject
from exporter.lower.litert.pack import pack, version_stamp
from exporter.lower.litert.skeleton import convert
from exporter.lower.litert.vendor import Signature
from exporter.quantize import WeightType
from exporter.text.files import read_text_files

ROWS, WIDTH = 96, 16


class Table(nn.Module):
    """A virtual matrix that one file looks up and another multiplies with."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.numbers = torch.randn(ROWS, WIDTH, generator=torch.manual_seed(seed))
        self.weight = nn.Parameter(torch.zeros(1, 1).expand(ROWS, WIDTH), requires_grad=False)

    def packed(self, _name):
        return None

    def shape(self, _name: str) -> tuple[int, ...]:
        return ROWS, WIDTH

    def rows(self, _name: str, start: int, stop: int) -> torch.Tensor:
        return self.numbers[start:stop]

    def export(self, path, name: str, sample, bits: int) -> None:
        skeleton = path.with_suffix(".skeleton")
        names = convert([Signature("main", self, sample)], {name: self.weight}, skeleton)
        inject(skeleton, names, self, {name: WeightType(bits)}, path)


class Lookup(Table):
    def forward(self, token_ids):
        return {"embeddings": nn.functional.embedding(token_ids, self.weight)}


class Head(Table):
    def forward(self, activations):
        return {"logits": nn.functional.linear(activations, self.weight)}


TOKENS = {"token_ids": torch.tensor([[7]], dtype=torch.int32)}
ACTIVATIONS = {"activations": torch.ones(1, 1, WIDTH)}


def packed_sections(folder, head_seed=0, head_name="table.weight", head_bits=8):
    """Packs an int8 embedder with a head; returns the two sections by stem."""
    Lookup(0).export(folder / "embedder.tflite", "table.weight", TOKENS, 8)
    Head(head_seed).export(folder / "prefill_decode.tflite", head_name, ACTIVATIONS, head_bits)
    for name, data in {
        "config.json": {"bos_token_id": 2, "eos_token_id": 1},
        "tokenizer.json": {},
    }.items():
        (folder / name).write_text(json.dumps(data))
    out = pack(
        folder, read_text_files(folder), 64, version_stamp("int8", None), folder / "model.litertlm"
    )
    litertlm_builder.unpack(str(out), str(folder / "unpacked"))
    return {
        stem: next((folder / "unpacked").glob(f"*tf_lite_{stem}.tflite"))
        for stem in ("embedder", "prefill_decode")
    }


def call(path, **inputs):
    return Interpreter(model_path=str(path)).get_signature_runner("main")(**inputs)


def test_a_table_both_files_hold_is_stored_once(tmp_path):
    sections = packed_sections(tmp_path)
    table = Lookup(0).numbers
    data = (tmp_path / "model.litertlm").read_bytes()
    stored = (tmp_path / "embedder.tflite").read_bytes()[-ROWS * WIDTH :]
    assert data.count(stored) == 1
    row = call(sections["embedder"], token_ids=np.array([[7]], np.int32))["embeddings"][0, 0]
    np.testing.assert_allclose(row, table[7], atol=float(table[7].abs().max()) / 127)
    alone = call(tmp_path / "embedder.tflite", token_ids=np.array([[7]], np.int32))
    np.testing.assert_array_equal(row, alone["embeddings"][0, 0])


def test_the_decoder_is_packed_as_it_is(tmp_path):
    sections = packed_sections(tmp_path)
    original = (tmp_path / "prefill_decode.tflite").read_bytes()
    assert sections["prefill_decode"].read_bytes() == original
    assert sections["embedder"].read_bytes().endswith(original)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param({"head_seed": 1}, id="other numbers"),
        pytest.param({"head_name": "lm_head.weight"}, id="other name"),
        pytest.param({"head_bits": 4}, id="other type"),
    ],
)
def test_a_head_of_its_own_leaves_the_embedder_whole(tmp_path, head):
    sections = packed_sections(tmp_path, **head)
    assert sections["embedder"].read_bytes() == (tmp_path / "embedder.tflite").read_bytes()
