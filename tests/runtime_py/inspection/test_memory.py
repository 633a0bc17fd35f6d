"""What a bundle needs to run, by what its files hold."""

import pytest

from runtime_py.inspection.findings import Findings, Weight, model_memory
from runtime_py.inspection.memory import (
    EXPERTS_REPACKED,
    OVERHEAD_BYTES,
    REPACKED,
    bundle_need_bytes,
)

TABLE_BYTES, MATRIX_BYTES, EXPERTS_BYTES = 5_000_000, 7_000_000, 900_000_000


def weight(name, size_bytes, use) -> Weight:
    return Weight(
        name=name,
        dtype="int4",
        group_size=0,
        shape=(2, size_bytes),
        size_bytes=size_bytes,
        scale_bytes=0,
        uses=(use,),
        used_by=("decode",),
    )


@pytest.fixture
def found() -> Findings:
    weights = (
        weight("embed_tokens.weight", TABLE_BYTES, "lookup"),
        weight("layers.0.self_attn.q_proj.weight", MATRIX_BYTES, "matmul"),
        weight("layers.0.experts.down_proj", EXPERTS_BYTES, "matmul"),
    )
    return Findings(
        files={"model.onnx": TABLE_BYTES + MATRIX_BYTES + EXPERTS_BYTES},
        sections=(),
        weights=weights,
        constants=(),
        signatures=(),
        kv=(),
        memory=model_memory(weights, (), "matrices, packed", "anonymous"),
    )


def test_experts_are_repacked_in_a_way_of_their_own(found):
    need = REPACKED["onnx"] * MATRIX_BYTES + EXPERTS_REPACKED * EXPERTS_BYTES
    assert bundle_need_bytes(found, "onnx") == pytest.approx(OVERHEAD_BYTES + need)
