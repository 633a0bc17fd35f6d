"""Tokens that generation_config.json suppresses are never said, as by transformers."""

import json
from contextlib import closing
from dataclasses import replace

import pytest

from exporter.pipeline import export
from runtime_py.backends import SessionOptions
from runtime_py.bundle import Bundle
from runtime_py.check import check_bundle
from runtime_py.sampling import GREEDY
from runtime_py.speculative import Stops
from tests.end_to_end.fuzz import draw_case, save_case
from tests.whole_model import WholeModel

NUM_TOKENS = 24
PROMPT = (2, 9, 8, 7)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("litert", "executorch")]


@pytest.mark.parametrize("runtime", ["onnx", *SLOW])
@pytest.mark.parametrize("softcap", [30.0, pytest.param(None, marks=pytest.mark.slow)])
def test_greedy_text_is_transformers_with_and_without_the_drafter(runtime, softcap, tmp_path):
    case = draw_case(3)
    shape = replace(case.shape, experts=0, softcap=softcap)
    config = replace(
        save_case(replace(case, shape=shape, has_drafter=True), tmp_path), runtimes=(runtime,)
    )
    target = tmp_path / "target"
    suppressed = sorted(set(WholeModel(target, None).greedy(PROMPT, 3)))
    settings = target / "generation_config.json"
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "suppress_tokens": suppressed})
    )
    wanted = WholeModel(target, None).greedy(PROMPT, NUM_TOKENS)
    assert not set(wanted) & set(suppressed)

    export(config)

    bundle = Bundle.open(config.output)
    assert check_bundle(bundle, runtime, SessionOptions(num_threads=1)).passed
    with closing(bundle.backend(runtime, SessionOptions(num_threads=1))) as backend:
        for draft_length in (0, 3):
            steps = bundle.session(backend).generate(
                PROMPT, GREEDY, Stops(max_new_tokens=NUM_TOKENS), draft_length
            )
            assert [token for step in steps for token in step.token_ids] == wanted
