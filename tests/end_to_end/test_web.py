"""The page of --target web in headless Chromium: it says what gemma-run says of the same bundle.

Slow because of two exports and a download. A script is put into the page that fills in the form,
clicks, and posts what is shown.
"""

import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import runtime_py
from exporter.config import LITERT_JS
from runtime_py.bundle.bundle import Bundle
from tests.end_to_end.conftest import run

pytestmark = pytest.mark.slow

VISITOR = Path(__file__).with_name("web_visitor.mjs")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 2**63 + 7}
NUM_PROMPTS, NUM_TOKENS = 2, 64
TIMEOUT_S = 240


class Visit(SimpleHTTPRequestHandler):
    """A bundle's folder, its page with the visitor in it, and what the visitor saw."""

    def __init__(self, *arguments, turns, seen, **options) -> None:
        self.turns, self.seen = turns, seen
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        if self.path == "/":
            page = Path(self.directory, "index.html").read_bytes()
            tag = b'<script type="module" src="/visitor.mjs"></script></body>'
            self._send(page.replace(b"</body>", tag), "text/html")
        elif self.path == "/visitor.mjs":
            self._send(VISITOR.read_bytes(), "text/javascript")
        elif self.path == "/turns.json":
            self._send(json.dumps(self.turns).encode(), "application/json")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self.seen["json"] = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(b"", "text/plain")
        self.seen["arrived"].set()

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments) -> None:
        pass


@contextmanager
def chromium(url: str, profile: Path):
    browser = subprocess.Popen(
        ["chromium", *FLAGS, f"--user-data-dir={profile}", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        browser.terminate()
        browser.wait()


def visit(folder: Path, profile: Path, turns: list[dict]) -> dict:
    """What a visitor of the bundle's page sees."""
    seen = {"arrived": threading.Event()}
    handler = partial(Visit, turns=turns, seen=seen, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with chromium(f"http://127.0.0.1:{server.server_port}/", profile):
            assert seen["arrived"].wait(TIMEOUT_S), f"no answer in {TIMEOUT_S} s"
        server.shutdown()
    return json.loads(seen["json"])


@pytest.fixture(scope="session", params=["int8", "float32"])
def web_bundle(request, tmp_path_factory) -> Path:
    for tool in ("chromium", "npm"):
        if not shutil.which(tool):
            pytest.skip(f"no {tool} on this machine: the page was NOT run in a browser")
    folder = tmp_path_factory.mktemp("web") / request.param
    arguments = ("--target", "web", "--size", "tiny", "--quantize", request.param, "--no-check")
    done = run("gemma-export", *arguments, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert (
        f"In a browser: npm install --no-save --prefix {folder} {LITERT_JS}; python3" in done.stdout
    )
    return folder


@pytest.fixture(scope="session")
def with_library(web_bundle) -> Path:
    subprocess.run(
        ["npm", "install", "--no-save", "--prefix", str(web_bundle), LITERT_JS],
        check=True,
        capture_output=True,
    )
    return web_bundle


def test_the_page_says_what_is_missing(web_bundle, tmp_path):
    folder = tmp_path / "without"
    shutil.copytree(web_bundle, folder, ignore=shutil.ignore_patterns("node_modules"))
    opened = visit(folder, tmp_path / "profile", [])["opened"]
    assert f"npm install --no-save --prefix . {LITERT_JS}" in opened


def test_the_page_says_what_gemma_run_says(with_library, tmp_path):
    bundle = Bundle.open(with_library)
    reference = bundle.reference()
    prompts = reference.prompts[:NUM_PROMPTS]
    asked = [
        (text, as_chat, sampling, length)
        for text in prompts
        for as_chat in (False, True)
        for sampling in (GREEDY, SAMPLED)
        for length in (0, 2, 3)
    ]
    seen = visit(with_library, tmp_path, [turn(*choices) for choices in asked])
    assert seen["opened"] == "ready"
    assert seen["lengths"] == 4, "0 .. 3 drafts"
    assert [answer["status"] for answer in seen["answers"]] == ["done"] * len(asked)
    # A last bit that two processors' kernels round differently moves an int8 activation by a whole
    # step: logits then differ by hundredths, and texts part where two tokens are that near.
    exact = bundle.entry("litert").recipe == "float32"
    for choices, answer in zip(asked, seen["answers"] if exact else [], strict=exact):
        assert numbers(answer) == {"status": "done", **expected(bundle, *choices)}, choices
    for start in range(0, len(asked), 3):
        plain, *fast = (answer["answer"] for answer in seen["answers"][start : start + 3])
        assert fast == [plain, plain], asked[start]
    assert seen["verdict"].startswith("passed")
    report = dict(seen["report"])
    num_tokens, num_prompts = reference.greedy_ids.size, reference.num_prompts
    same = f"{num_prompts} of {num_prompts}"
    assert report["recorded prompts become the same tokens"] == same
    assert report["speculative (K = 3) = plain"] == f"{num_tokens} of {num_tokens} tokens"
    if exact:
        assert report["plain decoding = original"] == f"{num_tokens} of {num_tokens} tokens"


def test_prompts_that_become_other_tokens_fail_the_check(with_library, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(with_library, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokens"]["bos_token_id"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seen = visit(folder, tmp_path / "profile", [turn("Hello", False, GREEDY, 3)])
    assert seen["answers"][0]["status"] == "done"
    assert "20 recorded prompts become other tokens" in seen["verdict"]


def turn(text: str, as_chat: bool, sampling: dict, length: int) -> dict:
    """The form, filled in; a seed has more bits than a number of JavaScript's."""
    choices = {
        "prompt": text,
        "temperature": sampling["temperature"],
        "topK": sampling["top_k"],
        "topP": sampling["top_p"],
        "seed": str(sampling["seed"]),
        "draftLength": length,
        "maxNewTokens": NUM_TOKENS,
    }
    return {"choices": choices, "asChat": as_chat}


def expected(bundle: Bundle, text: str, as_chat: bool, sampling: dict, length: int) -> dict:
    """What gemma-run makes of it, as the page shows it."""
    with runtime_py.load(bundle, runtime="litert", threads=1, draft_length=length) as model:
        result = model.generate(text, raw=not as_chat, max_new_tokens=NUM_TOKENS, **sampling)
    accepted = result.stats.accepted_per_round
    return {
        "answer": result.text,
        "tokens": len(result.token_ids),
        "accepted": None if accepted is None else pytest.approx(accepted, abs=0.0051),
    }


def numbers(answer: dict) -> dict:
    """The page's figures, of which the second has two decimals."""
    accepted = None if answer["accepted"] == "\N{EN DASH}" else float(answer["accepted"])
    return {**answer, "tokens": int(answer["tokens"]), "accepted": accepted}
