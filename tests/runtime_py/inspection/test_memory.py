"""The memory model: the same figure from every command, and what each quantity adds to it."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.cli.commands import main
from runtime_py.inspection.findings import Findings, KvBuffer, Weight
from runtime_py.inspection.memory import Contents, memory_of, memory_text, total_bytes
from tests.runtime_py.bundles import write_fake_bundle

RUNTIMES = ("litert", "executorch", "onnx")


def weight(name, use, used_by=("decode",), **changes) -> Weight:
    values = {
        "dtype": "int4",
        "group_size": 0,
        "shape": (100, 64),
        "size_bytes": 3200,
        "scale_bytes": 0,
    }
    return Weight(name=name, uses=use, used_by=used_by, **{**values, **changes})


FOUND = Findings(
    runtime="litert",
    files={"model": 4096},
    sections=(),
    weights=(
        weight("embed_tokens.weight", ("lookup", "matmul"), shape=(4096, 64)),
        weight("embed_tokens_per_layer.weight", ("lookup",), size_bytes=7000),
        weight("layers.0.mlp.up_proj.weight", ("matmul",), ("decode", "verify")),
        weight("layers.0.mlp.down_proj.weight", ("matmul",), ("decode", "verify")),
        weight("layers.10.mlp.up_proj.weight", ("matmul",), dtype="int8", size_bytes=6400),
        weight("drafter.layers.0.mlp.up_proj.weight", ("matmul",), group_size=32),
    ),
    constants=(),
    signatures=(),
    kv=(
        KvBuffer(name="kv_cache_k_0", dtype="float32", num_rows=10, row_bytes=8),
        KvBuffer(name="kv_cache_v_0", dtype="float32", num_rows=10, row_bytes=8),
    ),
)


def test_what_an_inspection_hands_to_the_model():
    assert FOUND.contents == Contents(
        matrices={"int4": 3 * 3200, "int8": 6400, "int4 in groups": 3200},
        table_bytes=7000,  # the embedding is read for every token: it is the head, too
        kv_bytes=160,
        graph_layers=4,  # 0 in two graphs, 10 and the drafter's 0 in one
        vocab_size=4096,
    )


def test_int8_rows_are_widened_for_target_and_drafter_where_no_window_bounds_them():
    kv = tuple(replace(buffer, dtype="int8") for buffer in FOUND.kv)
    found = replace(FOUND, kv=kv)
    assert found.contents.widened_bytes == 2 * 4 * 160
    assert found.with_windows(SlidingEntry(window=4, layers=(0,))).contents.widened_bytes == 0
    whole = found.contents
    for runtime, more in (("litert", 2 * 4 * 160), ("executorch", 0), ("onnx", 0)):
        bare = total_bytes(memory_of(runtime, replace(whole, widened_bytes=0)))
        assert total_bytes(memory_of(runtime, whole)) == bare + more


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_more_of_anything_takes_more_memory(runtime):
    contents = replace(FOUND.contents, widened_bytes=0)
    least = total_bytes(memory_of(runtime, contents))
    more = [
        replace(contents, matrices={"int4": 10**8}),
        replace(contents, matrices={"bfloat16": 10**8}),  # of another exporter
        replace(contents, table_bytes=10**8),
        replace(contents, kv_bytes=10**8),
        replace(contents, vocab_size=262144),
    ]
    assert all(total_bytes(memory_of(runtime, one)) > least + 10**7 for one in more)


def test_inspect_and_doctor_say_the_same_of_a_bundle(tmp_path, monkeypatch):
    bundle = write_fake_bundle(tmp_path / "bundle")
    for command in ("runtime_py.cli.commands", "runtime_py.doctor.doctor"):
        monkeypatch.setattr(f"{command}.inspect_bundle", lambda *_: FOUND)
    monkeypatch.setattr("runtime_py.doctor.doctor.probe", lambda _: None)  # which takes seconds
    inspected, diagnosed = (
        json.loads(CliRunner().invoke(main, [command, str(bundle), "--json"]).stdout)
        for command in ("inspect", "doctor")
    )
    [said] = {one["memory_bytes"] for one in inspected["runtimes"].values()}
    assert said == FOUND.memory_bytes == sum(item.size_bytes for item in FOUND.memory)
    assert {fit["need_bytes"] for fit in diagnosed["fits"]} == {said}
    for command in ("inspect", "doctor"):
        assert memory_text(said) in CliRunner().invoke(main, [command, str(bundle)]).stdout
