"""A model with experts, like 26B-A4B, from its checkpoint to tokens."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from exporter.cli.command import main
from exporter.quantize import load_recipe, size_bytes
from runtime_py.bundle.bundle import Bundle
from runtime_py.inspection import inspect_bundle
from tests.end_to_end.conftest import LoadedBundle, run
from tests.exporter.tiny_models import Shape, save_pair

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# Untied, or a random model says the last token again and again. Eight for a token, as in 26B-A4B:
# onnxruntime sums up to five in one order, and more in one that depends on the number of tokens.
EXPERTS = Shape(
    layers="sf", vocab_size=4096, hidden_size=64, intermediate_size=64, kv_heads=2,
    global_kv_heads=1, head_dim=32, global_head_dim=64, window=16, tied=False, experts=16,
    active_experts=8, expert_size=32, drafter_layers="sf", drafter_hidden=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tiny, tmp_path_factory) -> list[object]:
    """Of gemma-export: a random pair, and texts in the tiny model's tokens."""
    folder = tmp_path_factory.mktemp("experts")
    target, drafter = save_pair(EXPERTS, 1, folder)
    for name in TEXT_FILES:
        shutil.copy(tiny.model / name, target)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(tiny.prompts.read_text().splitlines(keepends=True)[:3]))
    return [
        *("--target", "desktop", "--context", 256, "--prompts", prompts),
        *("--model", target, "--drafter", drafter),
    ]


@pytest.fixture(
    scope="module",
    params=[
        "float32",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8", "int4", "int4-groups")),
    ],
)
def bundle(request, arguments, tmp_path_factory) -> Path:
    """Exported, and judged by the export's own check."""
    out = tmp_path_factory.mktemp(request.param) / "bundle"
    more = ("--runtime", "onnx", "--quantize", request.param, "--output", out)
    done = run("gemma-export", *arguments, *more, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def loaded(bundle):
    with closing(LoadedBundle(bundle, "onnx")) as loaded:
        yield loaded


def test_speculative_equals_plain(loaded):
    for prompt_ids in loaded.reference.prompt_ids:
        plain = loaded.generate(prompt_ids, 0)
        assert len(set(plain)) > len(plain) // 2, "the model repeats itself: it shows nothing"
        for draft_length in (1, 3, 7):
            assert loaded.generate(prompt_ids, draft_length) == plain


def test_verify_equals_decode_bit_for_bit(loaded):
    backend, prompt_ids = loaded.backend, loaded.reference.prompt_ids[0].tolist()
    text = loaded.reference.greedy_ids[0].tolist()[:16]
    start = len(prompt_ids)
    backend.prefill(prompt_ids, 0)
    decoded = [backend.verify([t], start + i)[0][0].copy() for i, t in enumerate(text)]
    for width in (2, 4, 8):
        for first in range(0, len(text), width):
            logits, _ = backend.verify(text[first : first + width], start + first)
            np.testing.assert_array_equal(logits, decoded[first : first + width])


def test_inspect_shows_a_stack_as_the_checkpoint_has_it(bundle):
    opened = Bundle.open(bundle)
    found = {weight.name: weight for weight in inspect_bundle(opened, "onnx").weights}
    recipe = load_recipe(opened.entry("onnx").recipe)
    for name, shape in (("gate_up_proj", (16, 64, 64)), ("down_proj", (16, 64, 32))):
        weight = found[f"layers.1.experts.{name}"]
        kind = recipe.weight_type(weight.name, shape)
        assert (weight.shape, weight.part) == (shape, "experts")
        assert weight.dtype == ("float32" if kind.bits == 32 else f"int{kind.bits}")
        assert weight.size_bytes == size_bytes(shape, kind)
        num_scales = 16 * 64 * (shape[2] // kind.group_size if kind.group_size else 1)
        assert weight.scale_bytes == (4 * num_scales if kind.bits < 32 else 0)


@pytest.mark.parametrize("runtime", ["litert", "executorch"])
def test_other_runtimes_refuse_experts_before_any_work(arguments, runtime, tmp_path):
    out = tmp_path / "bundle"
    all_arguments = [*map(str, arguments), "--runtime", runtime, "--output", str(out)]
    done = CliRunner().invoke(main, all_arguments, prog_name="gemma-export")
    assert done.exit_code == 1
    choice, line = done.stderr.splitlines()
    assert choice.startswith("export ")
    assert "error: layers.0.experts.gate_up_proj" in line
    assert "--runtime onnx" in line
    assert not list(tmp_path.iterdir())
