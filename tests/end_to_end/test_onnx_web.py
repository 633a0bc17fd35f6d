"""The ONNX bundle in onnxruntime's WebAssembly build, from npm, run by Node.

Slow because of the download. The web build has no threads in Node, and no IOBinding: present rows
are handed back as past, which copies them and must change nothing.
"""

import json
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.conftest import LoadedBundle

pytestmark = pytest.mark.slow

PACKAGE = "onnxruntime-web@1.30.0"
SCRIPT = Path(__file__).with_name("onnx_web.mjs")
NUM_TOKENS, NUM_DRAFTS = 48, 3


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """onnxruntime-web's entry for WebAssembly alone."""
    if not shutil.which("npm"):
        pytest.skip("no npm on this machine: the ONNX bundle was NOT run in onnxruntime-web")
    folder = tmp_path_factory.mktemp("npm")
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE],
        check=True,
        capture_output=True,
    )
    return folder / "node_modules" / "onnxruntime-web" / "dist" / "ort.node.min.mjs"


def test_the_web_build_says_the_same(export_tiny, recipe, library):
    folder = export_tiny(recipe)
    with closing(LoadedBundle(folder, "onnx")) as loaded:
        prompt = loaded.reference.prompt_ids[0].tolist()
        ids = loaded.generate(prompt, num_tokens=NUM_TOKENS)
        drafts = _drafts(loaded.backend, [*prompt, *ids])
    command = ["node", str(SCRIPT), str(library), str(folder), json.dumps(prompt)]
    done = subprocess.run(
        [*command, str(NUM_TOKENS), str(NUM_DRAFTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ids": ids, "drafts": drafts}


def _drafts(backend, token_ids):
    """What the drafter proposes after the last token, the rows before it just computed."""
    for position, token_id in enumerate(token_ids[:-1]):
        _, hidden = backend.verify([token_id], position)
    token_id, hidden, drafts = token_ids[-1], hidden[0].copy(), []
    for _ in range(NUM_DRAFTS):
        logits, projected = backend.draft(token_id, hidden, len(token_ids) - 1)
        token_id, hidden = int(logits.argmax()), projected.copy()
        drafts.append(token_id)
    return drafts
