"""A prompt that is longer than the window of the sliding layers."""

from bisect import bisect_right
from collections.abc import Callable, Sequence

from exporter.graph.sliding import sliding_layers
from exporter.graph.spec import TargetSpec
from exporter.original.record import ReferenceSize, long_length

_CHARACTERS_PER_TOKEN = 16  # more than any long text has


def with_long_prompt(
    chosen: list[tuple[str, Sequence[int]]],
    size: ReferenceSize,
    cache_length: int,
    spec: TargetSpec,
    encode: Callable[[str], list[int]],
) -> list[tuple[str, Sequence[int]]]:
    """The chosen prompts, with one that is longer than the sliding window.

    A wrong sliding layer shows only after its window. The prompts stay as they are where no layer
    slides or the context has no room.
    """
    length = long_length(spec.sliding_window, size, cache_length)
    longest = max(len(ids) for _, ids in chosen)
    if sliding_layers(spec) is None or length is None or longest >= length:
        return chosen
    said, ids = _begin(encode, "".join(f"{said}\n" for said, _ in chosen), length)
    if not spec.sliding_window < len(ids) <= length or max(ids) >= spec.vocab_size:
        return chosen  # the tokenizer makes too few tokens of this text
    return [*chosen[: size.num_prompts - 1], (said, ids)]


def _begin(
    encode: Callable[[str], list[int]], piece: str, num_tokens: int
) -> tuple[str, list[int]]:
    """The piece repeated, up to `num_tokens` tokens."""
    most = _CHARACTERS_PER_TOKEN * num_tokens
    long = (piece * (-(-most // len(piece))))[:most]
    # Bisect for the longest prefix that is not too long.
    end = bisect_right(range(1, most + 1), num_tokens, key=lambda end: len(encode(long[:end])))
    return long[:end], encode(long[:end])
