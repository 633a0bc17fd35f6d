"""What inspect shows, and that names from a file are shown, never obeyed."""

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from runtime_py.bundle.kv_rows import MARGIN, STEP
from runtime_py.bundle.manifest import SlidingEntry, file_entry
from runtime_py.cli import render_inspection
from runtime_py.cli.commands import main
from runtime_py.inspection.findings import (
    Findings,
    KvBuffer,
    Signature,
    Value,
    Weight,
)
from runtime_py.inspection.memory import memory_text
from tests.runtime_py.backends.toys import LITERT
from tests.runtime_py.bundles import write_fake_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_fake_bundle(tmp_path / "bundle")


@pytest.fixture
def toy(bundle):
    """The same with a model that can be read."""
    shutil.copy(LITERT.bundle, bundle / "model.litertlm")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["model.litertlm"] = file_entry(bundle / "model.litertlm").model_dump()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def weight(name, dtype="int8", group_size=0) -> Weight:
    return Weight(
        name=name,
        dtype=dtype,
        group_size=group_size,
        shape=(2, 64),
        size_bytes=128,
        scale_bytes=8,
        uses=("matmul",),
        used_by=("decode",),
    )


def findings(*weights: Weight) -> Findings:
    signature = Signature(
        name="decode",
        where="model",
        inputs=(Value("x", "float32", (1, None)), Value("kv_cache_k_0", "float32", (1, 2))),
        outputs=(),
    )
    return Findings(
        runtime="litert",
        files={"model": 4096},
        sections=(),
        weights=weights,
        constants=(),
        signatures=(signature,),
        kv=(KvBuffer(name="kv_cache_k_0", dtype="float32", num_rows=10, row_bytes=8),),
    )


def shown(found: Findings, capsys, show_all=False) -> str:
    render_inspection.print_findings(found, "title", show_all)
    return capsys.readouterr().out


def test_sizes_and_memory_come_first(capsys):
    lines = shown(findings(weight("lm_head.weight")), capsys).splitlines()
    assert lines[0] == "title"
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "on disk",
        "memory while it generates",
        "KV rows",
        "graphs",
    ]
    assert "0.00 MB (model 0.00 MB)" in lines[1]
    assert "float32, 8 bytes per token" in lines[3]
    assert lines[4] == "graphs: decode"
    assert findings().kv_bytes == 80


def test_types_are_folded_and_every_matrix_is_listed_on_request(capsys):
    names = [f"layers.{index}.mlp.up_proj.weight" for index in range(12)]
    found = findings(*map(weight, names))
    text = shown(found, capsys)
    (line,) = (line.split() for line in text.splitlines() if "MLP" in line)
    assert line[1::2][:3] == ["MLP", "int8", "12"]
    assert "up_proj" not in text
    text = shown(found, capsys, True)
    assert all(name in text for name in names)
    assert "x float32 [1, ?]" in text
    assert "kv_cache_k_0 float32 [1, 2]" in text


def test_another_type_is_another_line(capsys):
    found = findings(
        weight("layers.0.mlp.up_proj.weight"),
        weight("layers.1.mlp.up_proj.weight", "int4", 32),
        weight("layers.2.mlp.up_proj.weight", "int2"),
    )
    lines = [line for line in shown(found, capsys).splitlines() if "MLP" in line]
    assert [kind in line for kind, line in zip(("int2", "int4 / 32", "int8"), lines, strict=True)]


def test_of_a_layer_that_slides_only_the_rows_near_its_window_are_in_memory(capsys):
    buffers = tuple(
        KvBuffer(name=name, dtype="float32", num_rows=10_000, row_bytes=100)
        for name in ("kv_cache_k_0", "kv_cache_v_0", "kv_cache_k_10")
    )
    found = replace(findings(weight("lm_head.weight")), kv=buffers)
    told = found.with_windows(SlidingEntry(window=15, layers=(0,)))
    rows = 15 + 1 + MARGIN + STEP
    assert (told.kv_bytes, told.kv_resident_bytes) == (3_000_000, 1_000_000 + 2 * 100 * rows)
    assert found.memory_bytes - told.memory_bytes == 3_000_000 - told.kv_resident_bytes
    assert "3.00 MB for the whole context, of which at most 1.08 MB are in memory" in shown(
        told, capsys
    )


def test_the_memory_table_adds_up_to_the_one_figure(capsys):
    found = findings(weight("lm_head.weight"))
    assert memory_text(found.memory_bytes) in shown(found, capsys)


def test_a_name_from_a_file_is_no_markup(capsys):
    text = shown(findings(weight("[red]up[/nonsense]")), capsys, True)
    assert "[red]up[/nonsense]" in text


def test_one_object_on_stdout(toy):
    done = CliRunner().invoke(main, ["inspect", str(toy), "--json"])
    assert done.exit_code == 0
    values = json.loads(done.stdout)
    assert values["name"] == "scripted"
    assert values["runtimes"]["litert"]["recipe"] == "float32"
    assert values["runtimes"]["litert"]["weights"]


def test_tables_on_stdout(toy):
    done = CliRunner().invoke(main, ["inspect", str(toy), "--all"], env={"COLUMNS": "120"})
    assert done.exit_code == 0
    assert "scripted on litert, recipe float32" in done.stdout
    assert "tf_lite_prefill_decode" in done.stdout


@pytest.mark.parametrize("options", [[], ["--json"], ["--runtime", "litert"]])
def test_a_damaged_file_is_one_line(bundle, options):
    done = CliRunner().invoke(main, ["inspect", str(bundle), *options])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "model.litertlm: not a .litertlm file" in done.stderr


def test_a_runtime_that_the_bundle_was_not_made_for(toy):
    done = CliRunner().invoke(main, ["inspect", str(toy), "--runtime", "onnx"])
    assert done.exit_code == 1
    assert "made for litert" in done.stderr
