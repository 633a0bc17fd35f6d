"""Tokens that have a rule of their own: suppressed ones, and places of other modalities.

The rules are in the graphs, so every engine keeps them; transformers' generate() is the law.
"""

import json
import shutil
from contextlib import closing
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from exporter.config import GraphShapes, ModelSource
from exporter.pipeline import export
from runtime_py.backends import SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bundle.bundle import Bundle
from runtime_py.check.replay import check_bundle
from runtime_py.decoding.sampling import GREEDY
from runtime_py.decoding.session import Session, Stops
from tests.end_to_end.fuzz import draw_case, save_case
from tests.end_to_end.test_official_runtime import Official
from tests.whole_model import WholeModel

NUM_TOKENS = 24
PLACEHOLDER = 9
PROMPT = (2, PLACEHOLDER, 8, 7)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("litert", "executorch")]


def change(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize("runtime", ["onnx", *SLOW])
@pytest.mark.parametrize("softcap", [30.0, pytest.param(None, marks=pytest.mark.slow)])
def test_greedy_text_is_transformers_with_and_without_the_drafter(runtime, softcap, tmp_path):
    case = draw_case(3)
    shape = replace(case.shape, experts=0, softcap=softcap, unified=False, per_layer=4)
    case = replace(case, shape=shape, has_drafter=True, multimodal=True)
    config = replace(save_case(case, tmp_path), runtimes=(runtime,))
    target = tmp_path / "target"
    change(target / "config.json", image_token_id=PLACEHOLDER)
    suppressed = sorted(set(WholeModel(target, None).greedy(PROMPT, 3)))
    change(target / "generation_config.json", suppress_tokens=suppressed)
    wanted = WholeModel(target, None).greedy(PROMPT, NUM_TOKENS)
    assert not set(wanted) & set(suppressed)

    export(config)

    bundle = Bundle.open(config.output)
    report = check_bundle(bundle, runtime, SessionOptions(num_threads=1))
    assert (report.original.equal, report.agreement) == (True, 1)
    assert report.logit_error < 1e-3  # a suppressed token's would be off by 30,000
    with closing(load_backend(bundle, runtime, SessionOptions(num_threads=1))) as backend:
        for draft_length in (0, 3):
            steps = Session(backend, bundle.manifest.model.context_length).generate(
                PROMPT, GREEDY, Stops(max_new_tokens=NUM_TOKENS), draft_length
            )
            assert [token for step in steps for token in step.token_ids] == wanted


@pytest.mark.slow
def test_the_official_engine_keeps_the_rules_too(tiny, tmp_path):
    """The tiny model in a multimodal wrapper, one of whose tokens is an image's place."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "target"
    shutil.copytree(tiny.model, folder)
    text_config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "The argparse module"
    prompt = [text_config["bos_token_id"], *tokenizer.encode(text, add_special_tokens=False).ids]
    config = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": text_config,
        "vision_config": None,
        "audio_config": None,
        "image_token_id": prompt[2],
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    names = {name: name.replace("model.", "model.language_model.", 1) for name in weights}
    save_file(
        {names[name]: tensor for name, tensor in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    first = WholeModel(folder, None).greedy(prompt, 1)
    change(folder / "generation_config.json", suppress_tokens=first)
    wanted = WholeModel(folder, None).greedy(prompt, NUM_TOKENS)
    assert wanted[0] != first[0]
    config = replace(
        save_case(draw_case(3), tmp_path / "unused"),
        source=ModelSource(name="x", model=folder, drafter=tiny.drafter, prompts=tiny.prompts),
        output=tmp_path / "bundle",
        runtimes=("litert",),
        shapes=GraphShapes(prefill_lengths=(16,), verify_widths=(4,), cache_length=512),
    )
    export(config)
    official = Official(tmp_path / "bundle" / "model.litertlm", tmp_path)
    expected = tokenizer.decode(wanted, skip_special_tokens=False)
    for speculative in (False, True):
        answer = official.ask([text], speculative=speculative, num_tokens=NUM_TOKENS)
        assert answer.prompt_ids == [prompt[1:]]
        assert answer.texts[0].startswith(expected), (answer.texts[0], expected)
