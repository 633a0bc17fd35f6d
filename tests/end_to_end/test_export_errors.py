"""What gemma-export says to bad input: one line, exit code 1, nothing left behind."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from exporter.cli.command import main
from runtime_py.bundle.bundle import Bundle
from tests.end_to_end.conftest import ROOT
from tests.runtime_py.bundles import write_fake_bundle


@pytest.fixture
def checkpoint(tiny, tmp_path):
    """A copy of the tiny pair that a test may spoil: weights are links until they are rewritten."""
    for part, source in (("target", tiny.model), ("drafter", tiny.drafter)):
        shutil.copytree(source, tmp_path / part)
    return tmp_path


def export(folder, *more):
    """Run gemma-export on the pair in `folder`; returns the one line it must say."""
    arguments = ["--target", "raspberry-pi", "--output", str(folder / "bundle")]
    if "--size" not in more and "--model" not in more:
        arguments += ["--model", str(folder / "target"), "--drafter", str(folder / "drafter")]
    result = CliRunner().invoke(main, [*arguments, *map(str, more)], prog_name="gemma-export")
    assert result.exit_code == 1, (result.output, result.exception)
    assert not (folder / "bundle").exists()
    assert not list(folder.glob(".*")), "debris"
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_int8_kv_rows_where_the_runtime_has_none(checkpoint):
    said = export(checkpoint, "--kv", "int8", "--runtime", "litert", "--runtime", "executorch")
    assert "--kv int8 with --runtime executorch: our attention kernel" in said
    assert said.endswith("use --runtime litert or onnx, or --kv float32")


def test_int8_kv_rows_in_a_browser(checkpoint):
    said = export(checkpoint, "--target", "web", "--kv", "int8")
    assert "--kv int8 with --target web: the page in the bundle makes float32 rows" in said


def test_no_such_folder(checkpoint):
    said = export(checkpoint, "--model", checkpoint / "nowhere", "--no-drafter")
    assert "nowhere: no such folder" in said


def test_not_a_gemma_4_checkpoint(checkpoint):
    change_config(checkpoint / "target", model_type="llama", architectures=["LlamaForCausalLM"])
    assert "llama" in export(checkpoint)


def test_truncated_safetensors(checkpoint):
    path = checkpoint / "target" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors" in (said := export(checkpoint))
    assert "truncated" in said


def test_corrupt_safetensors(checkpoint):
    path = checkpoint / "target" / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    assert "model.safetensors" in export(checkpoint)


def test_missing_tensor(checkpoint):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(checkpoint / "target", lambda tensors: tensors.pop(name))
    assert "layers.1.mlp.up_proj.weight" in (said := export(checkpoint))
    assert "missing" in said


def test_extra_tensor(checkpoint):
    def add(tensors):
        tensors["model.layers.1.mlp.surprise.weight"] = tensors["model.norm.weight"].clone()

    change_tensors(checkpoint / "target", add)
    assert "layers.1.mlp.surprise.weight" in export(checkpoint)


def test_a_pickle_is_refused(checkpoint):
    target = checkpoint / "target"
    (target / "model.safetensors").rename(target / "pytorch_model.bin")
    said = export(checkpoint)
    assert "pickle" in said
    assert "safetensors" in said


def test_a_drafter_made_for_another_hidden_size(checkpoint):
    change_config(checkpoint / "drafter", backbone_hidden_size=1536)
    assert "1536" in export(checkpoint)


def test_a_drafter_made_for_another_vocabulary(checkpoint):
    path = checkpoint / "drafter" / "config.json"
    values = json.loads(path.read_text())
    values["text_config"]["vocab_size"] = 262144
    path.write_text(json.dumps(values))
    assert "262144" in export(checkpoint)


def test_a_target_given_as_drafter(checkpoint):
    assert "drafter" in export(checkpoint, "--drafter", checkpoint / "target")


def test_num_centroids_without_use_ordered_embeddings_is_a_dense_head(checkpoint):
    """As in the 12B drafter's config.json: the switch decides, not the number beside it."""
    from exporter.checkpoint.reader import read_checkpoint, read_drafter

    drafter = checkpoint / "drafter"
    change_config(drafter, use_ordered_embeddings=False)
    change_tensors(
        drafter,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if "masked_emb" in name],
    )
    spec = read_drafter(drafter, read_checkpoint(checkpoint / "target")).spec
    assert json.loads((drafter / "config.json").read_text())["num_centroids"]
    assert spec.centroids is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("recipe.toml", "[[rule]]\npattern = '*'\nbits = 5\n", "bits = 5"),
        ("recipe.toml", "[[rule]]\npattern = '*'\nbits = 8\ncolour = 'red'\n", "colour"),
        ("recipe.toml", "[[rule", "not valid TOML"),
        ("recipe.toml", "[check]\nmin_agreement = 2.0\n[[rule]]\npattern='*'\nbits=8", "check.min"),
    ],
)
def test_a_bad_recipe(checkpoint, name, text, said):
    (checkpoint / name).write_text(text)
    assert said in export(checkpoint, "--quantize", checkpoint / name)


def test_an_unknown_recipe(checkpoint):
    assert "int3" in (said := export(checkpoint, "--quantize", "int3"))
    assert "float16, float32, int4, int4-groups, int8, mobile" in said


@pytest.mark.parametrize(
    ("recipe", "runtime", "said"),
    [
        ("mobile", "executorch", "2 bits, ExecuTorch's XNNPACK"),
        ("float16", "executorch", "16 bits, ExecuTorch's XNNPACK"),
        ("int4-groups", "litert", "LiteRT graphs have one per row"),
    ],
)
def test_a_recipe_the_runtime_cannot_store(checkpoint, recipe, runtime, said):
    line = export(checkpoint, "--quantize", recipe, "--runtime", runtime)
    assert said in line
    assert "--quantize int4" in line or "--quantize float32" in line


@pytest.mark.parametrize("text", ["", "not json\n", '{"kind": "song", "text": "la"}\n'])
def test_bad_prompts(checkpoint, text):
    path = checkpoint / "prompts.jsonl"
    path.write_text(text)
    assert "prompts.jsonl" in export(checkpoint, "--prompts", path)


def test_prompts_that_do_not_fit_the_context(checkpoint):
    assert "--context" in export(checkpoint, "--context", "32")


def test_a_context_longer_than_the_models(checkpoint):
    assert "2048" in export(checkpoint, "--context", "4096")


@pytest.mark.parametrize("option", ["--model", "--adapter"])
def test_what_is_missing_here_is_said_before_anything_is_downloaded(checkpoint, option):
    """The drafter of --size e2b is on the hub, which is not asked."""
    said = export(checkpoint, "--size", "e2b", option, checkpoint / "nowhere")
    assert "nowhere: no" in said
    assert "hub" not in said


def test_no_tokenizer(checkpoint):
    (checkpoint / "target" / "tokenizer.json").unlink()
    assert "tokenizer.json" in export(checkpoint)


def test_a_value_that_only_transformers_refuses(checkpoint):
    change_config(checkpoint / "target", attention_dropout="x")
    assert "transformers cannot load" in (said := export(checkpoint))
    assert "attention_dropout" in said


def test_a_tokenizer_of_a_larger_vocabulary(checkpoint):
    path = checkpoint / "target" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["a"] = 10**6
    path.write_text(json.dumps(values))
    (checkpoint / "prompts.jsonl").write_text('{"kind": "text", "text": "a"}')
    said = export(checkpoint, "--prompts", checkpoint / "prompts.jsonl")
    assert "into token 1000000, the model has" in said


def test_weights_too_large_for_their_products(checkpoint):
    """Each is a number, the logits are not."""

    def enlarge(tensors):
        tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)

    change_config(checkpoint / "target", final_logit_softcapping=None)
    change_tensors(checkpoint / "target", enlarge)
    assert "though no weight is" in export(checkpoint, *short_prompt(checkpoint))


def test_a_weight_that_is_not_a_number(checkpoint):
    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")

    change_tensors(checkpoint / "target", spoil)
    said = export(checkpoint, *short_prompt(checkpoint))
    assert "layers.1.mlp.up_proj.weight holds NaN or infinity" in said


def short_prompt(folder):
    (folder / "short.jsonl").write_text('{"kind": "text", "text": "a"}')
    return "--prompts", folder / "short.jsonl"


def test_no_place_for_the_bundle(checkpoint):
    (checkpoint / "file").write_text("")
    said = export(checkpoint, "--output", checkpoint / "file" / "bundle")
    assert "choose another --output" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing option '--target'"),
        (["--target", "toaster", "--size", "tiny"], "'toaster' is not one of"),
        (["--target", "android"], "--size or --model"),
        (["--target", "android", "--drafter", "x"], "--size or --model"),
        (["--target", "android", "--model", "x"], "--drafter, --no-drafter, or its --size"),
        (["--target", "android", "--model", "x", "--drafter", "y", "--no-drafter"], "contradict"),
        (["--target", "android", "--model", "a/b@c d", "--no-drafter"], "'c d' is not a revision"),
        (["--target", "android", "--size", "tiny", "--runtime", "tpu"], "'tpu' is not"),
        (["--target", "android", "--size", "tiny", "--context", "0"], "--context"),
        (["--target", "android", "--size", "tiny", "--colour", "red"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, said):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("target", "which is read; choose another --output"),
        ("target/bundle", "which is read; choose another --output"),
        ("other", "other: not a bundle (no manifest.json), so --overwrite leaves it alone"),
        ("x" * 300, "a name of 300 bytes, a bundle's has at most 200"),
    ],
)
def test_an_output_that_cannot_be(checkpoint, output, said):
    (checkpoint / "other").mkdir()
    (checkpoint / "other" / "thesis.txt").write_text("years of work")
    files = sorted(checkpoint.rglob("*"))
    assert said in export(checkpoint, "--output", checkpoint / output, "--overwrite")
    assert sorted(checkpoint.rglob("*")) == files


@pytest.fixture
def old_bundle(tmp_path):
    """An older bundle in the place of the new one."""
    (tmp_path / "place").mkdir()
    return write_fake_bundle(tmp_path / "place" / "bundle")


def start_export(output: Path, *more: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "exporter", "--target", "raspberry-pi", "--size", "tiny"]
    return subprocess.Popen(
        [*command, "--output", str(output), "--overwrite", "--no-check", *map(str, more)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def assert_old_bundle_and_no_debris(bundle: Path) -> None:
    assert os.listdir(bundle.parent) == ["bundle"]
    opened = Bundle.open(bundle)
    opened.verify_checksums()
    assert opened.manifest.name == "scripted"


def test_a_disk_that_fills_up(old_bundle, tmp_path):
    def no_file_over_half_a_megabyte():  # the first graph is larger
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write over the limit then just fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    prompts = short_prompt(tmp_path)
    process = start_export(old_bundle, *prompts, preexec_fn=no_file_over_half_a_megabyte)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "the disk is full" in said
    assert_old_bundle_and_no_debris(old_bundle)


def test_a_disk_that_is_too_full_is_refused_before_the_work(checkpoint, monkeypatch):
    free = shutil._ntuple_diskusage(10**9, 10**9, 10**6)
    monkeypatch.setattr("exporter.estimate.export.shutil.disk_usage", lambda _: free)
    assert "the disk is too full: 1 MB free" in export(checkpoint)
