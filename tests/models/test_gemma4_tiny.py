"""The small trained model pair: its features, its tokenizer, and that its drafts are accepted."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from train import corpus, measure, tokenizer, train_drafter
from transformers import AutoTokenizer

FOLDER = Path(__file__).parents[2] / "models" / "gemma4-tiny"
MAX_SIZE_BYTES = 15_000_000
NUM_TOKENS = 32


@pytest.fixture(scope="module")
def models():
    return measure.load(FOLDER)


@pytest.fixture(scope="module")
def target(models):
    return models[0]


@pytest.fixture(scope="module")
def drafter(models):
    return models[1]


@pytest.fixture(scope="module")
def hf_tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER / "target")


@pytest.fixture(scope="module")
def prompts():
    return measure.read_prompts(FOLDER)


@pytest.fixture(scope="module")
def some_prompts(prompts):
    return prompts[::7]  # texts and chats


def dtypes(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def test_files_are_bfloat16_and_small_enough_for_git():
    found = dtypes(FOLDER / "target/model.safetensors")
    found |= dtypes(FOLDER / "drafter/model.safetensors")
    assert found.pop("masked_embedding.token_ordering") == "I64"
    assert set(found.values()) == {"BF16"}
    files = [path for name in ("target", "drafter") for path in (FOLDER / name).iterdir()]
    assert sum(path.stat().st_size for path in files) <= MAX_SIZE_BYTES


def test_target_has_per_layer_embeddings_for_each_layer(target):
    config = target.config
    assert config.hidden_size_per_layer_input == 32
    table = target.model.embed_tokens_per_layer.weight  # [V, layers * 32]
    assert table.shape == (config.vocab_size, config.num_hidden_layers * 32)
    # Trained, so an export that loses the table gives other text.
    assert table.std() > 0.01


def test_last_three_layers_share_keys_and_values_and_are_double_wide(target):
    own, shared = target.model.layers[:3], target.model.layers[3:]
    assert all(hasattr(layer.self_attn, "k_proj") for layer in own)
    assert not any(hasattr(layer.self_attn, "k_proj") for layer in shared)
    widths = [layer.mlp.up_proj.out_features for layer in target.model.layers]
    assert widths == [640] * 3 + [1280] * 3


def test_sliding_and_full_layers_have_heads_of_different_lengths(target, drafter):
    for model in (target, drafter):
        lengths = {
            layer.self_attn.layer_type: layer.self_attn.head_dim for layer in model.model.layers
        }
        assert lengths == {"sliding_attention": 32, "full_attention": 64}


def test_target_caps_logits_ties_embeddings_and_scales_layers(target):
    assert target.config.final_logit_softcapping == 30.0
    assert target.lm_head.weight is target.model.embed_tokens.weight
    assert len({float(layer.layer_scalar) for layer in target.model.layers}) == 6


def test_drafter_reads_keys_and_values_and_makes_none(target, drafter):
    assert len(drafter.model.layers) == 4
    assert not any("k_proj" in name or "v_proj" in name for name, _ in drafter.named_parameters())
    assert drafter.backbone_hidden_size == target.config.hidden_size


def test_clusters_hold_each_token_once_and_similar_tokens_together(drafter):
    head = drafter.masked_embedding
    assert drafter.config.use_ordered_embeddings
    assert head.token_ordering.sort().values.equal(torch.arange(4096))
    rows = torch.nn.functional.normalize(drafter.lm_head.weight, dim=-1)
    rows = rows - rows.mean(dim=0)

    def explained(ordering: torch.Tensor) -> float:
        means = rows[ordering].unflatten(0, (head.num_centroids, -1)).mean(dim=1)
        return float(means.square().sum(dim=-1).mean() / rows.square().sum(dim=-1).mean())

    by_chance = torch.randperm(4096, generator=torch.Generator().manual_seed(0))
    assert explained(head.token_ordering) > 4 * explained(by_chance)


@torch.no_grad()
def test_centroid_head_finds_the_best_token(target, drafter, some_prompts):
    found = []
    for prompt in some_prompts:
        teacher = train_drafter.ask(target, torch.tensor([prompt]))
        hidden = train_drafter.unroll(drafter, teacher)[0][:, 1:]
        best = drafter.lm_head(hidden).argmax(dim=-1)
        chosen = drafter.masked_embedding(hidden, drafter.lm_head.weight).argmax(dim=-1)
        found.append((best == chosen).flatten())
    assert torch.cat(found).float().mean() > 0.95


@pytest.mark.parametrize(
    "text",
    [
        "Return the *default* value.\n\n    >>> x = [1, 2]\n",
        "naïve café — 日本語 🙂",
        "  two  spaces\t",
    ],
)
def test_tokenizer_gives_back_the_text_and_adds_nothing(hf_tokenizer, text):
    tokens = hf_tokenizer(text).input_ids
    assert hf_tokenizer.decode(tokens) == text
    assert not set(tokens) & set(range(len(tokenizer.CONTROL_TOKENS)))


def test_control_tokens_have_the_names_and_the_first_ids_of_gemma_4(hf_tokenizer):
    assert hf_tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>"]) == [0, 1, 2]
    assert len(hf_tokenizer) == 4096
    for name in tokenizer.CONTROL_TOKENS:
        assert len(hf_tokenizer(name).input_ids) == 1
    assert not hf_tokenizer.decode(
        hf_tokenizer("<|turn><turn|>").input_ids, skip_special_tokens=True
    )


def test_template_writes_turns_as_gemma_4_does(hf_tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Explain json. "},
        {"role": "assistant", "content": "JSON."},
        {"role": "user", "content": "More."},
    ]
    text = hf_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nExplain json.<turn|>\n"
        "<|turn>model\nJSON.<turn|>\n<|turn>user\nMore.<turn|>\n<|turn>model\n"
    )


def test_requests_are_trained_on_as_the_template_writes_them(hf_tokenizer):
    by_template = hf_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Explain json."}], add_generation_prompt=True
    )
    by_training = tokenizer.encode_request(hf_tokenizer.backend_tokenizer, "Explain json.")
    assert list(by_template["input_ids"]) == by_training


def test_generation_stops_at_the_end_of_a_turn(target, drafter, hf_tokenizer):
    end_of_turn = hf_tokenizer.convert_tokens_to_ids("<turn|>")
    assert target.generation_config.eos_token_id == [1, end_of_turn]
    assert drafter.generation_config.eos_token_id == [1, end_of_turn]


def test_prompts_are_texts_and_chats():
    lines = (FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert len(kinds) >= 24
    assert kinds.count("chat") * 2 == kinds.count("text")


def test_held_out_pages_are_never_trained_on(tmp_path):
    names = [*corpus.HELD_OUT_FILES, "library/json.rst.txt", "whatsnew/3.11.rst.txt"]
    for name in names:
        path = tmp_path / "doc/_sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n", encoding="utf-8")
    train, held_out = corpus.split(corpus.read(tmp_path))
    assert [document.name for document in train] == ["library/json.rst.txt"]
    assert {document.name for document in held_out} == corpus.HELD_OUT_FILES


def test_chats_are_made_of_sections_and_of_described_symbols():
    text = (
        f"Reading\n=======\n\n{'One paragraph of text. ' * 5}\n\n"
        f".. function:: load(fp)\n\n   {'It reads the file. ' * 5}\n\n"
    )
    found = corpus.chats(corpus.Document("library/json.rst.txt", text))
    assert [chat.request for chat in found] == ["Explain Reading.", "What does load do?"]
    assert found[1].answer.startswith("``load(fp)``\n\nIt reads")


@pytest.mark.parametrize("draft_length", [1, 3])
def test_speculative_tokens_equal_plain_ones(target, drafter, some_prompts, draft_length):
    for prompt in some_prompts[:3]:
        plain = measure.plain(target, prompt, NUM_TOKENS)
        fast = measure.speculative(target, drafter, prompt, draft_length, NUM_TOKENS)
        assert fast.tokens == plain


def test_transformers_assisted_generation_equals_plain(target, drafter, some_prompts):
    for prompt in some_prompts[:2]:
        row = torch.tensor([prompt])
        fast = target.generate(
            row,
            attention_mask=torch.ones_like(row),
            assistant_model=drafter,
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )
        assert fast[0, len(prompt) :].tolist() == measure.plain(target, prompt, NUM_TOKENS)


def test_drafts_are_accepted(target, drafter, some_prompts):
    found = measure.acceptance(target, drafter, some_prompts, 3, NUM_TOKENS)
    assert found.mean > 1.5


@pytest.mark.parametrize("mistake", ["no hidden state", "swapped inputs", "no projection back"])
def test_a_wrongly_wired_drafter_is_noticed(target, some_prompts, mistake):
    _, broken = measure.load(FOLDER)
    width = target.config.hidden_size
    if mistake == "no hidden state":
        broken.pre_projection.weight[:, width:] = 0
    elif mistake == "swapped inputs":
        broken.pre_projection.weight.copy_(broken.pre_projection.weight.roll(width, dims=1))
    else:
        broken.post_projection.weight.zero_()
    found = measure.acceptance(target, broken, some_prompts, 3, NUM_TOKENS)
    assert found.mean < 1.5
