"""What `import runtime_py` offers, what it costs, and that docs/python-api.md says so."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import runtime_py
from runtime_py.backends.load import BACKENDS
from runtime_py.model.model import DEFAULT_MAX_NEW_TOKENS
from tests.runtime_py.bundles import VOCAB_SIZE, write_fake_bundle
from tests.runtime_py.scripted_backend import ScriptedBackend

CONTEXT = '"context_length": 2048'
ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "python-api.md"
NAMES = {
    *("FinishReason", "Message", "Model", "Piece", "Result", "RunError"),
    *("SamplingParams", "Stats", "Stream", "load"),
}
# What a type checker must see of the package, and what it must refuse.
TYPED = """
import runtime_py
from runtime_py import RunError, SamplingParams, load

def answer(folder: str) -> str:
    with load(folder, runtime="onnx", threads=2, draft_length="auto") as model:
        pieces = [piece.text for piece in model.stream([{"role": "user", "content": "hi"}], seed=7)]
        result: runtime_py.Result = model.generate("hi", SamplingParams(top_k=3), temperature=0.8)
        speed: float | None = result.stats.tokens_per_s
        model.generate("hi", temprature=0.8)  # refused
        model.generate("hi", seed="7")  # refused
        runtime_py.lod(folder)  # refused
        return result.text if result.finish_reason == "stop" else "".join(pieces)
"""


def test_what_is_public_is_pinned_and_there():
    assert set(runtime_py.__all__) == NAMES
    assert set(dir(runtime_py)) >= NAMES
    assert all(hasattr(runtime_py, name) for name in NAMES)
    with pytest.raises(AttributeError, match="lod"):
        _ = runtime_py.lod


def test_the_import_alone_loads_nothing():
    """It comes before every other module of the package, in helper processes too."""
    program = "import runtime_py, sys; print(*(m for m in sys.modules if '.' in m or m == 'numpy'))"
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path[:0] = [{str(ROOT)!r}]; {program}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.split()
    assert not [name for name in loaded if name.startswith("runtime_py") or name == "numpy"]


@pytest.mark.slow  # mypy reads the whole package
def test_a_type_checker_sees_the_api(tmp_path):
    (tmp_path / "program.py").write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "program.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    refused = [n for n, line in enumerate(TYPED.splitlines(), 1) if line.endswith("# refused")]
    errors = [int(number) for number in re.findall(r"^program.py:(\d+): error:", done.stdout, re.M)]
    assert sorted(set(errors)) == refused, done.stdout


class Measured(ScriptedBackend):
    """Draft length auto times drafts from a hidden state of zeros, before anything is committed."""

    def draft(self, token_id, hidden, position):
        if hidden.any():
            return super().draft(token_id, hidden, position)
        return np.zeros(self.vocab_size, np.float32), hidden


def blocks():
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_guide_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    manifest = write_fake_bundle(tmp_path / "gemma4-tiny-raspberry-pi") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"context_length": 128', CONTEXT))
    monkeypatch.chdir(tmp_path)
    graphs = partial(Measured, vocab_size=VOCAB_SIZE, cache_length=2048)
    monkeypatch.setitem(BACKENDS, "litert", lambda *_: graphs())
    program = "\n".join(blocks())
    assert program.count("runtime_py.load(") >= 4
    exec(compile(program, str(GUIDE), "exec"), {})
    assert "no-such-folder: no such bundle folder; make one with gemma-export" in (
        capsys.readouterr().out
    )


def test_the_guide_names_everything_public():
    text = GUIDE.read_text(encoding="utf-8")
    parts = (runtime_py.Result, runtime_py.Stats, runtime_py.Piece, runtime_py.SamplingParams)
    fields = {name for part in parts for name in part.__dataclass_fields__}
    methods = {name for name in vars(runtime_py.Model) if not name.startswith("_")}
    for name in {*fields, *methods}:
        assert f"`{name}" in text or f".{name}" in text, name


def test_the_guide_gives_the_defaults():
    text = GUIDE.read_text(encoding="utf-8")
    sampling = runtime_py.SamplingParams()
    for name in ("temperature", "top_k", "top_p", "seed"):
        assert re.search(rf"^\| `{name}` .*\| {getattr(sampling, name):g} \|$", text, re.M), name
    assert f"max_new_tokens={DEFAULT_MAX_NEW_TOKENS}," in text
