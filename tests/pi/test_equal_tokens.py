"""The same bundle says the same on a Raspberry Pi's cores as on this machine, token for token.

In float32 the two differ in the last bits of logits, so every token is equal. int8 rounds
activations: a last bit can turn into a whole step. There tokens may part where the two best logits
are nearer to each other than int8 moves logits anyway, by this machine's check, and nowhere else.
"""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends import SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bundle.bundle import Bundle
from tests.pi.emulator import BUNDLE, CORES

pytestmark = [pytest.mark.pi, pytest.mark.timeout(3600)]

PROMPT = "The argparse module"
NUM_TOKENS = 32
SAMPLINGS = {
    "greedy": ("--temperature", 0),
    "temperature 0.9, seed 7": ("--temperature", 0.9, "--seed", 7),
}


def answer_of(done):
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}{done.stdout}"
    return json.loads(done.stdout)


def places(report, what):
    """The first difference of each prompt, without the margins."""
    return [
        (difference["prompt"], difference["token"]) for difference in report[what]["differences"]
    ]


def summary(report):
    equal = {what: report[what]["num_equal"] for what in ("speculative", "original")}
    return (
        f"speculative = plain on {equal['speculative']} of {report['original']['num_tokens']} "
        f"tokens, plain = original on {equal['original']}, agreement {report['agreement']:.1%}"
    )


def test_check_passes_and_finds_the_same(pi, here, recipe, runtime, log):
    options = ("--runtime", runtime, "--threads", 1, "--json")
    found = answer_of(pi.gemma_run("check", BUNDLE, *options))
    wanted = answer_of(here("check", pi.bundle, *options))
    log(f"{recipe:7} {runtime:10} {pi.core} ({CORES[pi.core]})  check: {summary(found)}")
    log(f"{recipe:7} {runtime:10} this machine                check: {summary(wanted)}")
    assert found["passed"]
    if recipe == "float32":
        for what in ("original", "speculative"):
            assert places(found, what) == places(wanted, what) == []
        assert found["acceptance"] == wanted["acceptance"]
        assert found["agreement"] == wanted["agreement"] == 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_generate_gives_the_same_tokens(pi, here, recipe, runtime, sampling, log):
    options = ("--prompt", PROMPT, "--max-new-tokens", NUM_TOKENS, "--runtime", runtime)
    options += (*SAMPLINGS[sampling], "--threads", 1, "--draft-length", 3, "--raw", "--json")
    found = answer_of(pi.gemma_run("generate", BUNDLE, *options))["token_ids"]
    wanted = answer_of(here("generate", pi.bundle, *options))["token_ids"]
    assert len(found) == len(wanted) == NUM_TOKENS
    num_equal = (np.array([*found, -1]) != np.array([*wanted, -2])).argmax()
    said = (
        f"{recipe:7} {runtime:10} {pi.core} ({CORES[pi.core]})  generate, {sampling}: "
        f"{num_equal} of {NUM_TOKENS} tokens equal"
    )
    if num_equal == NUM_TOKENS:
        log(f"{said} {found}")
        return
    margin, scale = margin_there(pi.bundle, runtime, wanted[:num_equal])
    report = answer_of(here("check", pi.bundle, "--runtime", runtime, "--threads", 1, "--json"))
    moved = report["logit_error"] * scale
    log(f"{said}, then a tie: margin {margin:.2g}, int8 moves logits by up to {moved:.2g}")
    assert (recipe, sampling) == ("int8", "greedy"), (found, wanted)
    assert margin < moved


def margin_there(folder: Path, runtime: str, token_ids: list[int]) -> tuple[float, float]:
    """After these tokens: how far the best logit is above the next; and the largest logit."""
    bundle = Bundle.open(folder)
    text = [*bundle.tokenizer().encode(PROMPT), *token_ids]
    with closing(load_backend(bundle, runtime, SessionOptions(num_threads=1))) as backend:
        backend.prefill(text[:-1], 0)
        logits, _ = backend.verify(text[-1:], len(text) - 1)
    second, first = np.partition(logits[0], -2)[-2:]
    return float(first - second), bundle.reference().logit_scale
