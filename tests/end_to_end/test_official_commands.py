"""LiteRT-LM's own commands and the README's Python lines answer from our file as a user calls them.

No sampler is given anywhere: the one of the file's metadata answers, after the file's template.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.text.files import OriginalTokenizer
from tests.end_to_end.conftest import ROOT, run

QUESTION = "Explain argparse."
TIMEOUT_S = 120
MIN_TOKENS = 16


@pytest.fixture(params=[False, True], ids=["plain", "MTP"])
def speculative(request) -> bool:
    return request.param


@pytest.fixture(scope="module")
def home(export_tiny, tmp_path_factory) -> Path:
    """A user's home with a bundle in it that LiteRT-LM may write its caches into."""
    folder = tmp_path_factory.mktemp("home")
    bundle = folder / "gemma4-tiny-raspberry-pi"
    bundle.mkdir()
    shutil.copy(export_tiny("float32") / "model.litertlm", bundle)
    done = command(folder, "import", bundle / "model.litertlm", "gemma4-tiny")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def expected(tiny, original) -> str:
    """How transformers begins its answer: template, tokens and greedy choice."""
    tokenizer = OriginalTokenizer(tiny.model)
    prompt_ids = tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
    return tokenizer._tokenizer.decode(original.greedy(prompt_ids, MIN_TOKENS))


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "LITERT_LM_DIR": str(home / ".litert-lm")}


def command(home: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [Path(sys.executable).with_name("litert-lm"), *map(str, arguments)],
        cwd=home,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def mtp(speculative: bool) -> tuple[str, str]:
    return "--speculative-decoding", "true" if speculative else "false"


def test_run_answers(home, expected, speculative):
    done = command(
        home,
        *("run", "gemma4-tiny-raspberry-pi/model.litertlm"),
        *("--prompt", QUESTION, *mtp(speculative)),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected), done.stdout + done.stderr


def test_run_says_what_gemma_run_says(export_tiny, tmp_path, speculative):
    """Quantized, to its stop token."""
    bundle = export_tiny("int8")
    ours = run("gemma-run", "generate", bundle, "--runtime", "litert", "--prompt", QUESTION)
    shutil.copy(bundle / "model.litertlm", tmp_path)
    theirs = command(tmp_path, "run", "model.litertlm", "--prompt", QUESTION, *mtp(speculative))
    assert theirs.stdout == ours.stdout, theirs.stderr + ours.stderr


def test_benchmark_counts_decoded_tokens(home, speculative):
    done = command(
        home,
        *("benchmark", "gemma4-tiny", "--skip-warmup", *mtp(speculative)),
        *("--prefill-tokens", 16, "--decode-tokens", 16),
    )
    speed = re.search(r"Decode speed: +([\d.]+)", done.stdout)
    assert speed is not None, done.stdout + done.stderr
    assert float(speed[1]) > 0, done.stderr


def test_serve_answers_over_http(home, expected, speculative):
    config = home / ".litert-lm" / "config.json"
    config.write_text(json.dumps({"default": {"speculative_decoding": speculative}}))
    question = {"model": "gemma4-tiny", "messages": [{"role": "user", "content": QUESTION}]}
    with served(home) as address:
        request = urllib.request.Request(
            f"{address}/v1/chat/completions",
            data=json.dumps(question).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            answer = json.load(response)
    assert answer["choices"][0]["message"]["content"].startswith(expected)


@contextmanager
def served(home: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [Path(sys.executable).with_name("litert-lm"), "serve", "--port", str(port)],
        cwd=home,
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(TIMEOUT_S)


def wait_for(port: int, server: subprocess.Popen) -> None:
    give_up = time.monotonic() + TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert server.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.05)


def test_the_lines_in_readme_answer(home, expected, speculative):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if "enable_speculative_decoding=True" in block]
    done = subprocess.run(
        [sys.executable, "-c", lines.replace("decoding=True", f"decoding={speculative}")],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith(expected)
