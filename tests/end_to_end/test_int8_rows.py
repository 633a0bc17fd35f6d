"""The tiny model with int8 KV rows, from its checkpoint to tokens, also by Google's own runtime."""

import shutil
from contextlib import closing
from pathlib import Path

import onnx
import pytest
from tokenizers import Tokenizer

from runtime_py.backends.load import pick_runtime
from runtime_py.backends.onnx.backend import open_onnx
from runtime_py.bundle.bundle import Bundle
from runtime_py.check.replay import run_check
from runtime_py.decoding.session import Session
from runtime_py.inspection import inspect_bundle
from tests.end_to_end.conftest import LoadedBundle, run
from tests.end_to_end.test_official_runtime import MIN_ACCEPTANCE, Official, until_stop
from tests.end_to_end.tiny_bundles import write_prompts

LITERT = pytest.param("litert", marks=pytest.mark.slow)  # two minutes to lower
DRAFT_LENGTHS = (1, 3, 7)


@pytest.fixture(scope="module", params=[LITERT, "onnx"])
def bundle(request, tmp_path_factory) -> Path:
    """Exported for one runtime, and judged by the export's own check."""
    folder = tmp_path_factory.mktemp("int8_rows")
    out = folder / "bundle"
    done = run(
        "gemma-export",
        *("--target", "raspberry-pi", "--size", "tiny", "--quantize", "float32"),
        *("--kv", "int8", "--output", out, "--runtime", request.param),
        *("--prompts", write_prompts(folder)),
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed:" in done.stdout
    return out


@pytest.fixture(scope="module")
def loaded(bundle):
    with closing(LoadedBundle(bundle, pick_runtime(Bundle.open(bundle), None))) as loaded:
        yield loaded


def test_speculative_equals_plain(loaded):
    for prompt_ids in loaded.reference.prompt_ids:
        plain = loaded.generate(prompt_ids, 0)
        for draft_length in DRAFT_LENGTHS:
            assert loaded.generate(prompt_ids, draft_length) == plain


def test_the_files_say_so(bundle):
    opened = Bundle.open(bundle)
    found = inspect_bundle(opened, pick_runtime(opened, None))
    assert found.kv_types == ("int8",)
    # Two sliding layers of 32 numbers and a full one of 64, keys and values, a byte each.
    assert found.kv_bytes_per_token == 2 * (32 + 32 + 64)
    shown = run("gemma-run", "inspect", bundle).stdout
    assert "KV rows: int8, 256 bytes per token" in shown


@pytest.mark.parametrize("bundle", ["onnx"], indirect=True)
def test_the_check_notices_another_scale(bundle, tmp_path):
    """It allows more than without int8 rows, but not rows that are read as other numbers."""
    for path in bundle.glob("model.*"):
        shutil.copy(path, tmp_path)
    for path in tmp_path.glob("model.*.onnx"):
        model = onnx.load(path, load_external_data=False)
        scales = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        assert scales
        for tensor in model.graph.initializer:
            if tensor.name in scales:
                tensor.raw_data = (2 * onnx.numpy_helper.to_array(tensor)).tobytes()
        onnx.save(model, path)
    opened = Bundle.open(bundle)
    with closing(open_onnx(tmp_path / "model.fill.onnx", num_threads=1)) as backend:
        session = Session(backend, backend.cache_length)
        tolerances = opened.entry("onnx").tolerances
        report = run_check(session, backend, opened.reference(), tolerances)
    assert any("agree with the original" in failure for failure in report.failures)


@pytest.mark.parametrize("bundle", [LITERT], indirect=True)
@pytest.mark.parametrize("speculative", [False, True], ids=["plain", "speculative"])
def test_the_official_runtime_says_what_ours_says(bundle, tmp_path, speculative):
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    with closing(LoadedBundle(bundle, "litert")) as loaded:
        prompts = [ids.tolist() for ids in loaded.reference.prompt_ids]
        stop_ids = set(loaded.bundle.manifest.tokens.stop_token_ids)
        ours = [until_stop(loaded.generate(ids), stop_ids) for ids in prompts]
    texts = [tokenizer.decode(ids[1:], skip_special_tokens=False) for ids in prompts]
    answer = Official(bundle / "model.litertlm", tmp_path).ask(texts, speculative=speculative)
    for ids, text in zip(ours, answer.texts, strict=True):
        assert text.startswith(tokenizer.decode(ids, skip_special_tokens=False))
    if speculative:
        assert answer.acceptance > MIN_ACCEPTANCE
