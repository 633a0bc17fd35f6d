"""The accept rule: how many drafts the target keeps, and the token it adds."""

from collections.abc import Sequence

from runtime_py.decoding.sampling import FloatArray, SamplingParams, choose


def accept(
    draft_ids: Sequence[int], verify_logits: FloatArray, sampling: SamplingParams, position: int
) -> tuple[int, int]:
    """Keep the longest draft prefix that the target would choose by itself.

    Args:
        draft_ids: K tokens proposed by the drafter.
        verify_logits: [K + 1, V] target logits; row i judges draft i, the last follows all.
        sampling: how the target chooses a token from a row.
        position: of the first draft; row i chooses the token at position + i.

    Returns:
        (num_accepted, bonus_token), with 0 <= num_accepted <= K.

    Raises:
        ValueError: if there is not exactly one row more than there are drafts.

    Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding",
    greedy case. Noise keyed by position makes sampling the same case (see sampling.py).
    """
    if len(verify_logits) != len(draft_ids) + 1:
        raise ValueError(f"{len(draft_ids)} drafts need {len(draft_ids) + 1} rows of logits")
    for num_accepted, draft_id in enumerate(draft_ids):
        chosen = choose(verify_logits[num_accepted], sampling, position + num_accepted)
        if chosen != draft_id:
            return num_accepted, chosen
    return len(draft_ids), choose(verify_logits[-1], sampling, position + len(draft_ids))
