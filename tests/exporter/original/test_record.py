"""How much of the original is recorded, and that the record is what the original said."""

import json

import numpy as np
import pytest

from exporter.checkpoint.reader import read_checkpoint, read_drafter
from exporter.original.model import Original, group_texts
from exporter.original.record import (
    Prompt,
    ReferenceSize,
    choose_prompts,
    long_length,
    read_prompts,
    record_reference,
    reference_size,
)
from runtime_py.bundle.kv_rows import MARGIN, STEP
from tests.whole_model import WholeModel

SIZE = ReferenceSize(num_tokens=6, draft_length=2)


@pytest.fixture(scope="module")
def recorded(originals):
    target = read_checkpoint(originals[0])
    prompts = [("one", [2, 5, 9, 11]), ("two", [2, 7])]
    done = []
    original = Original(target, read_drafter(originals[1], target))
    return record_reference(original, prompts, SIZE, done.append), done


def test_the_record_is_what_transformers_says(recorded, originals):
    reference, done = recorded[0].reference, recorded[1]
    whole = WholeModel(*originals)
    donors = read_checkpoint(originals[0]).spec.donors
    assert done == [1, 2, 3, 4, 5, 6]
    for index, ids in enumerate(reference.prompt_ids):
        greedy_ids = reference.greedy_ids[index].tolist()
        assert greedy_ids == whole.greedy(ids.tolist(), SIZE.num_tokens)
        read = whole.read([*ids.tolist(), *greedy_ids])
        logits = read.logits[len(ids) - 1 : -1].numpy()
        wanted = np.take_along_axis(logits, reference.probe_ids[index].astype(np.int64), axis=1)
        np.testing.assert_allclose(reference.probe_logits[index], wanted, atol=1e-4)
        assert np.abs(logits).max() <= reference.logit_scale * 1.0001
        drafts = [
            whole.draft(read, donors, len(ids) + token, SIZE.draft_length)
            for token in range(SIZE.num_tokens - SIZE.draft_length)
        ]
        assert reference.draft_ids[index].tolist() == drafts


def test_suppressed_tokens_are_neither_said_nor_probed(recorded, target, originals):
    first = recorded[0].reference
    suppressed = sorted({int(token) for token in first.greedy_ids[:, 0]})
    (target / "generation_config.json").write_text(json.dumps({"suppress_tokens": suppressed}))
    checkpoint = read_checkpoint(target)
    original = Original(checkpoint, read_drafter(originals[1], checkpoint))
    prompts = [("", ids.tolist()) for ids in first.prompt_ids]
    reference = record_reference(original, prompts, SIZE).reference
    assert not np.isin(reference.probe_ids, suppressed).any()
    assert np.isfinite(reference.probe_logits).all()
    whole = WholeModel(target, None)  # its generate() reads the file by itself
    for ids, greedy_ids in zip(reference.prompt_ids, reference.greedy_ids, strict=True):
        assert greedy_ids.tolist() == whole.greedy(ids.tolist(), SIZE.num_tokens)
        assert not np.isin(greedy_ids, suppressed).any()


def test_the_most_probable_token_is_the_first_probe(recorded):
    reference = recorded[0].reference
    np.testing.assert_array_equal(reference.probe_ids[..., 0], reference.greedy_ids)
    assert (reference.margins >= 0).all()


def test_the_ranges_of_the_kv_rows_are_those_of_transformers_rows(recorded, originals):
    """Of both texts; the shorter one is padded, which is no row of anything."""
    reference, whole = recorded[0].reference, WholeModel(*originals)
    texts = [
        [*prompt.tolist(), *greedy.tolist()[:-1]]  # the last token is never read
        for prompt, greedy in zip(reference.prompt_ids, reference.greedy_ids, strict=True)
    ]
    rows = [whole.read(text).rows for text in texts]
    found = recorded[0].kv_ranges
    assert sorted(found) == list(range(len(rows[0])))
    for layer, kv_range in found.items():
        keys, values = (
            max(float(read[layer][part].abs().max()) for read in rows) for part in (0, 1)
        )
        assert kv_range.keys == pytest.approx(keys, rel=1e-4)
        assert kv_range.values == pytest.approx(values, rel=1e-4)


def test_a_check_can_draft_again_along_what_is_recorded():
    """It walks a text to its end, and then drafts from its first token on."""
    assert ReferenceSize().num_tokens < MARGIN


def test_less_is_recorded_of_a_large_model():
    assert reference_size(2_000_000, 3) == ReferenceSize(draft_length=3)
    sizes = [reference_size(weights, 3) for weights in (10**9, 5 * 10**9, 30 * 10**9)]
    assert [(size.num_prompts, size.num_tokens) for size in sizes] == [(8, 32), (8, 16), (8, 8)]


@pytest.mark.parametrize(
    ("lengths", "most", "cache_length", "wanted"),
    [
        ([3, 50, 4], None, 100, [3, 50, 4]),
        ([3, 50, 4], None, 30, [3, 4]),  # 6 of the rows are for the answer
        ([3, 50, 4], 10, 100, [3, 4]),
        ([60, 50], 10, 100, [50]),  # none is short: the shortest
        ([60, 50], None, 30, []),
        ([1] * 30, None, 30, [1] * 20),
    ],
)
def test_prompts_that_fit(lengths, most, cache_length, wanted):
    prompts = [("", [0] * length) for length in lengths]
    size = ReferenceSize(num_tokens=6, max_prompt_length=most)
    chosen = choose_prompts(prompts, size, cache_length)
    assert [len(ids) for _, ids in chosen] == wanted


def test_prompts_may_begin_with_a_byte_order_mark_and_hold_any_line_separator(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = '{"kind": "text", "text": "a\u2028b"}\r\n\n{"kind": "chat", "text": "c"}'
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert read_prompts(path) == [Prompt("text", "a\u2028b"), Prompt("chat", "c")]


@pytest.mark.parametrize(
    ("window", "cache_length", "wanted"),
    [
        (128, 2048, 128 + 1 + MARGIN + STEP + 1),  # rows were given back
        (128, 200, 194),  # all that is left
        (194, 200, None),
        (512, 200, None),
    ],
)
def test_a_long_prompt_passes_the_window(window, cache_length, wanted):
    assert long_length(window, SIZE, cache_length) == wanted


def test_a_far_longer_text_is_read_by_itself():
    assert group_texts([20, 500, 30, 25]) == [[0, 2, 3], [1]]
    assert group_texts([20, 31, 30, 25]) == [[0, 1, 2, 3]]
    assert group_texts([500, 500, 20]) == [[0, 1, 2]]
    assert group_texts([9000]) == [[0]]


def test_a_text_read_by_itself_says_the_same(originals):
    target = read_checkpoint(originals[0])
    draw = np.random.default_rng(0)
    prompts = [("", draw.integers(2, target.spec.vocab_size, n).tolist()) for n in (3, 700, 5)]
    original = Original(target, read_drafter(originals[1], target))
    assert len(group_texts([3, 700, 5])) == 2
    together = record_reference(original, prompts, SIZE)
    alone = [record_reference(original, [prompt], SIZE) for prompt in prompts]
    for name in ("greedy_ids", "draft_ids", "probe_logits"):
        wanted = np.concatenate([getattr(part.reference, name) for part in alone])
        if name == "probe_logits":
            wanted = wanted[..., :8]  # the others are drawn by the prompt's number
            np.testing.assert_allclose(together.reference.probe_logits[..., :8], wanted, atol=1e-4)
        else:
            np.testing.assert_array_equal(getattr(together.reference, name), wanted)
    for layer, kv_range in together.kv_ranges.items():
        wanted = max(part.kv_ranges[layer].keys for part in alone)
        assert kv_range.keys == pytest.approx(wanted, rel=1e-4)
