"""The original run layer by layer equals transformers' whole model, for every kind of Gemma 4."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.errors import ExportError
from exporter.original import model as original
from exporter.original.model import Original
from tests.exporter import tiny_models
from tests.exporter.graph.eager import EagerModel
from tests.whole_model import WholeModel

LENGTHS = (17, 3, 1, 9)  # longer and shorter than every window, so that all are padded but one
NUM_TOKENS = 8
DRAFT_LENGTH = 3
TOLERANCE = 1e-5  # of the largest value
RANDOM_TOLERANCE = 1e-4  # some random models are ill-conditioned (graph/test_against_transformers)
SHAPES = {
    "e2b": tiny_models.E2B,
    "e4b": tiny_models.E4B,
    "unified-12b": tiny_models.UNIFIED_12B,
    "dense-31b": tiny_models.DENSE_31B,
    "untied": tiny_models.UNTIED,
    "26b-a4b": tiny_models.A4B_26B,
} | {f"random-{seed}": tiny_models.random_shape(seed) for seed in range(6)}


class Pair:
    """One random model, whole and layer by layer."""

    def __init__(self, name: str, folder: Path, multimodal: bool = False) -> None:
        shape, seed = SHAPES[name], sum(name.encode())
        target = tiny_models.target_model(shape, seed, multimodal)
        folders = (
            tiny_models.save(target, folder / "target"),
            tiny_models.save(tiny_models.drafter_model(shape, seed + 1), folder / "drafter"),
        )
        self.tolerance = RANDOM_TOLERANCE if name.startswith("random") else TOLERANCE
        self.whole = WholeModel(*folders)
        self.checkpoint = read_checkpoint(folders[0])
        self.drafter = read_drafter(folders[1], self.checkpoint)
        generator = torch.Generator().manual_seed(seed)
        self.prompts = [
            torch.randint(shape.vocab_size, (length,), generator=generator).tolist()
            for length in LENGTHS
        ]

    def assert_close(self, found, wanted):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= self.tolerance * wanted.abs().max()

    def original(self, kept_bytes: int = 0) -> Original:
        return Original(self.checkpoint, self.drafter, kept_bytes)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


def test_logits_of_a_whole_text(pair):
    pair.assert_close(
        pair.original().read(pair.prompts[0]), pair.whole.read(pair.prompts[0]).logits
    )


def continuation(pair, **options):
    """Greedy tokens, logits, hidden states and drafts of all prompts: [N, M, ...]."""
    texts = pair.original(**options).begin(pair.prompts)
    steps = []
    for _ in range(NUM_TOKENS):
        token_ids = texts.logits.argmax(dim=-1)
        steps.append((token_ids, texts.logits, texts.hidden, texts.draft(token_ids, DRAFT_LENGTH)))
        texts.advance(token_ids)
    return [torch.stack(values, dim=1) for values in zip(*steps, strict=True)]


def test_texts_of_all_lengths_together(pair):
    tokens, logits, hidden, drafts = continuation(pair)
    donors = pair.checkpoint.spec.donors
    for index, prompt_ids in enumerate(pair.prompts):
        text = [*prompt_ids, *tokens[index].tolist()]
        assert pair.whole.greedy(prompt_ids, NUM_TOKENS) == text[len(prompt_ids) :]
        read = pair.whole.read(text)
        rows = slice(len(prompt_ids) - 1, len(text) - 1)
        pair.assert_close(logits[index], read.logits[rows])
        pair.assert_close(hidden[index], read.hidden[0, rows])
        for step in range(NUM_TOKENS):
            position = len(prompt_ids) + step
            wanted = pair.whole.draft(read, donors, position, DRAFT_LENGTH)
            assert drafts[index, step].tolist() == wanted


def test_what_is_kept_and_how_much_is_read_at_once_change_nothing(pair, monkeypatch):
    wanted = continuation(pair)
    monkeypatch.setattr(original, "TOKENS_AT_ONCE", 8)  # two columns of four texts
    monkeypatch.setattr("exporter.original.weights.LENT_BYTES", 1000)
    for found, one in zip(continuation(pair, kept_bytes=1 << 30), wanted, strict=True):
        pair.assert_close(found.float(), one.float())


@pytest.mark.parametrize("name", ["e2b", "unified-12b"])
def test_the_text_part_of_a_multimodal_checkpoint(name, tmp_path):
    pair = Pair(name, tmp_path, multimodal=True)
    pair.assert_close(
        pair.original().read(pair.prompts[0]), pair.whole.read(pair.prompts[0]).logits
    )


@pytest.mark.parametrize("name", ["e2b", "unified-12b"])
def test_placeholders_of_other_modalities_embed_as_padding(name, tmp_path):
    """In prompt and answer, in both tables, as transformers' multimodal classes do."""
    pair = Pair(name, tmp_path, multimodal=True)
    prompt = [2, 9, 5, 11, 6, 7]
    wanted = pair.whole.greedy(prompt, NUM_TOKENS)  # when they are tokens like others
    path = tmp_path / "target" / "config.json"
    config = json.loads(path.read_text())
    config |= {"image_token_id": 5, "audio_token_id": 6, "video_token_id": wanted[0]}
    config["text_config"]["pad_token_id"] = 3
    path.write_text(json.dumps(config))
    whole = WholeModel(tmp_path / "target", None)
    wanted = whole.greedy(prompt, NUM_TOKENS)
    checkpoint = read_checkpoint(tmp_path / "target")
    assert checkpoint.spec.placeholder_ids == (5, 6, config["video_token_id"])

    texts, said = Original(checkpoint, None).begin([prompt]), []
    for _ in wanted:
        said.append(int(texts.logits.argmax()))
        texts.advance(torch.tensor(said[-1:]))
    assert said == wanted
    text = [*prompt, config["video_token_id"], *wanted]
    logits = whole.read(text).logits
    pair.assert_close(Original(checkpoint, None).read(text), logits)
    graph = EagerModel(tmp_path / "target", tmp_path / "drafter", cache_length=32)
    with torch.no_grad():
        graph.prefill(torch.tensor(text[:4]), 0)
        pair.assert_close(graph.verify(torch.tensor(text[4:]), 4)[0], logits[4:])


def test_experts_of_any_width(tmp_path):
    """torch's grouped product takes rows of a multiple of 16 bytes only."""
    shape = dataclasses.replace(tiny_models.A4B_26B, hidden_size=30, expert_size=7)
    model = tiny_models.target_model(shape, 1)
    model.set_experts_implementation("eager")
    checkpoint = read_checkpoint(tiny_models.save(model, tmp_path))
    found = Original(checkpoint, None).read([1, 2, 3, 4])
    with torch.no_grad():
        wanted = model(torch.tensor([[1, 2, 3, 4]])).logits[0]
    assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


def test_without_a_drafter(pair):
    texts = Original(pair.checkpoint, None).begin(pair.prompts)
    assert texts.draft(texts.logits.argmax(dim=-1), 3).shape == (len(pair.prompts), 0)


def test_transformers_has_its_say(tmp_path):
    """What our own reading does not look at."""
    pair = Pair("e2b", tmp_path)
    path = tmp_path / "target" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "hidden_activation": "no_such_function"}))
    with pytest.raises(ExportError, match="transformers cannot load the original") as refused:
        Original(pair.checkpoint, None)
    assert "\n" not in str(refused.value)


def test_a_tensor_the_export_does_not_read(tmp_path):
    """A newer transformers may know more of the configuration than we do."""
    pair = Pair("e2b", tmp_path)
    path = tmp_path / "target" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(ExportError, match=r"it needs layers\.0\.mlp\.gate_proj\.weight of shape"):
        Original(pair.checkpoint, None)
