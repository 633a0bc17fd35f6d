"""Sampling: which token follows, as a pure function of logits, seed and position.

The next token is argmax(logits / temperature + gumbel(seed, position, token id)) over the tokens
that survive top-k and top-p. The argmax of logits plus Gumbel noise is a draw from their softmax
(Gumbel 1954; Maddison et al. 2014). The noise depends only on (seed, position, token id), so target
and drafter share it, and speculative decoding emits the tokens of plain decoding at any
temperature.

Source: Daliri, Musco, Suresh 2025, "Coupling without Communication and Drafter-Invariant
Speculative Decoding"; the counter-based generator is Philox4x32-10 (Salmon et al. 2011, "Parallel
Random Numbers: As Easy as 1, 2, 3").
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from runtime_py.errors import RunError

FloatArray = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64]
Word = npt.NDArray[np.uint64]
Words = tuple[Word, Word, Word, Word]

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MAX_GUMBEL = 36.75  # just above the largest noise
# Dividing a logit by less may overflow. Noise could only decide ties there: take the lowest id.
_GREEDY_BELOW = 1e-200
_BLOCK = 256  # logits
_NUM_AT_ONCE = 8192  # tokens whose noise is computed together: they fit the processor's cache
_NUM_RANKED = 4096  # top-p sorts only the likeliest ones, where they hold enough mass


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a token is chosen from logits; temperature 0 is greedy and ignores the rest.

    The defaults of top-k and top-p are those that Google recommends for Gemma.

    Raises:
        RunError: for a value out of range.
    """

    temperature: float = 0.0  # 0 is greedy
    top_k: int = 64  # tokens kept, 0 keeps all
    top_p: float = 0.95  # probability mass kept, 1 keeps all
    seed: int = 0  # 0 .. 2**64 - 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RunError(f"temperature is {self.temperature}; it must be a number from 0 up")
        if self.top_k < 0:
            raise RunError(f"top-k is {self.top_k}; it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise RunError(f"top-p is {self.top_p}; it must be above 0 and at most 1 (off)")
        if not 0 <= self.seed < 2**64:
            raise RunError(f"seed is {self.seed}; it must be 0 .. 2**64 - 1")

    @cached_property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW


GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0)


def choose(logits: FloatArray, sampling: SamplingParams, position: int) -> int:
    """Choose the next token.

    Args:
        logits: [V] of the step.
        sampling: temperature, filters and seed.
        position: index of the chosen token, from the start of the sequence.

    Returns:
        A token id; the lowest id wins a tie.
    """
    if sampling.greedy:
        return int(logits.argmax())
    token_ids, scaled = surviving_tokens(logits, sampling)
    if token_ids.size > _NUM_RANKED:
        # Noise is expensive: drop the tokens that no noise could lift above the likeliest one.
        top = np.argmax(scaled)
        reached = scaled[top] + gumbel(sampling.seed, position, token_ids[top : top + 1])[0]
        kept = scaled >= reached - _MAX_GUMBEL
        token_ids, scaled = token_ids[kept], scaled[kept]
    return int(token_ids[np.argmax(scaled + gumbel(sampling.seed, position, token_ids))])


def surviving_tokens(
    logits: FloatArray, sampling: SamplingParams
) -> tuple[TokenIds, npt.NDArray[np.float64]]:
    """Filter by top-k, then top-p.

    Top-p keeps the likeliest tokens until their mass reaches top_p, including the one that crosses
    it. Equal logits are ranked by token id, so the same logits always keep the same tokens.

    Returns:
        [S] ascending ids of the tokens kept, and their logits / temperature.
    """
    if 0 < sampling.top_k < logits.size:
        token_ids = _largest(logits, sampling.top_k)
        logits = logits[token_ids]
    else:
        token_ids = np.arange(logits.size)
    scaled = np.divide(logits, sampling.temperature, dtype=np.float64)
    if sampling.top_p < 1:
        kept = _likeliest(scaled, sampling.top_p)
        token_ids, scaled = token_ids[kept], scaled[kept]
    return token_ids, scaled


def _largest(logits: FloatArray, k: int) -> TokenIds:
    """Ascending ids of the k largest logits; of ties for the last place, the lowest."""
    candidates = np.arange(logits.size)
    maxima = np.maximum.reduceat(logits, np.arange(0, logits.size, _BLOCK))
    if maxima.size > k:
        # At least k blocks have a maximum this high, so the k largest logits are too. To partition
        # all logits is slow where almost all are equal, as behind a centroid head.
        candidates = np.flatnonzero(logits >= np.partition(maxima, -k)[-k])
    values = logits[candidates]
    threshold = np.partition(values, -k)[-k]
    above = candidates[values > threshold]
    ties = candidates[values == threshold][: k - above.size]
    return np.sort(np.concatenate((above, ties)))


def _likeliest(scaled: npt.NDArray[np.float64], top_p: float) -> TokenIds:
    """Ascending indices of the fewest likeliest tokens whose mass reaches top_p."""
    weights = np.exp(scaled - scaled.max())
    wanted = top_p * weights.sum()
    candidates = np.arange(scaled.size)
    if scaled.size > _NUM_RANKED:
        # Ties with the last one stay in, so that ranking these few equals ranking all.
        threshold = np.partition(scaled, -_NUM_RANKED)[-_NUM_RANKED]
        few = np.flatnonzero(scaled >= threshold)
        if weights[few].sum() >= wanted:
            candidates = few
    ranked = candidates[np.argsort(-scaled[candidates], kind="stable")]
    mass = np.cumsum(weights[ranked])
    return np.sort(ranked[mass - weights[ranked] < wanted])


def gumbel(seed: int, position: int, token_ids: TokenIds) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of one position, for the given tokens, between -3.61 and 36.74."""
    noise = np.empty(token_ids.size)
    for start in range(0, token_ids.size, _NUM_AT_ONCE):
        block = slice(start, start + _NUM_AT_ONCE)
        noise[block] = _gumbel(seed, position, token_ids[block])
    return noise


def _gumbel(seed: int, position: int, token_ids: TokenIds) -> npt.NDArray[np.float64]:
    size = token_ids.size
    counter = (
        token_ids.astype(np.uint64),
        np.full(size, position & 0xFFFFFFFF, np.uint64),
        np.full(size, position >> 32, np.uint64),
        np.zeros(size, np.uint64),
    )
    first, second, _, _ = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    # 52 random bits and a half: never 0 or 1, exact in a float64.
    bits = (first << np.uint64(20)) | (second >> np.uint64(12))
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-52
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: four 32-bit words per counter, each held in a uint64."""
    even = np.stack((counter[0], counter[2]))  # [2, N], the words that are multiplied
    odd = np.stack((counter[1], counter[3]))
    for round_key in _round_keys(key):
        product = even * _MULTIPLIERS
        even = (product >> _HALF)[::-1] ^ odd ^ round_key
        odd = (product & _LOW)[::-1]
    return even[0], odd[0], even[1], odd[1]


@lru_cache(maxsize=4)
def _round_keys(key: tuple[int, int]) -> Word:
    """[10, 2, 1] the key of each round."""
    rounds = range(_ROUNDS)
    words = [
        [[(k + i * s) & 0xFFFFFFFF] for k, s in zip(key, _KEY_STEPS, strict=True)] for i in rounds
    ]
    return np.array(words, np.uint64)
