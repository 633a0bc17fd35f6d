"""reference.npz: what the original said, recorded at export and replayed by `gemma-run check`."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime_py.errors import RunError

Ids = npt.NDArray[np.int32]
_ARRAYS = ("prompts", "prompt_lengths", "prompt_ids", "greedy_ids")
_LOGITS = ("probe_ids", "probe_logits", "logit_scale", "draft_ids")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The original model on N prompts: M greedy tokens each, stop tokens ignored.

    Row i of the last four describes the position that chose greedy token i, given the original's
    own text before it.
    """

    prompts: tuple[str, ...]
    prompt_ids: tuple[Ids, ...]  # N arrays of token ids
    greedy_ids: Ids  # [N, M]
    probe_ids: Ids  # [N, M, P] tokens whose logits were kept, the two most probable first
    probe_logits: npt.NDArray[np.float32]  # [N, M, P]
    logit_scale: float  # largest absolute logit seen
    draft_ids: Ids  # [N, M - K, K] what the original drafter proposes after greedy token i

    @property
    def num_prompts(self) -> int:
        return len(self.prompts)

    @property
    def margins(self) -> npt.NDArray[np.float32]:
        """[N, M] how far the chosen token's logit was above the next."""
        return self.probe_logits[..., 0] - self.probe_logits[..., 1]

    def behind(self, prompt: int, token: int, token_id: int) -> float:
        """How far a token's logit was below the chosen one's; infinite if it was not kept."""
        (kept,) = np.nonzero(self.probe_ids[prompt, token] == token_id)
        logits = self.probe_logits[prompt, token]
        return float(logits[0] - logits[kept[0]]) if kept.size else float("inf")

    def __post_init__(self) -> None:
        num_prompts, num_tokens = self.greedy_ids.shape
        shapes_agree = (
            len(self.prompts) == len(self.prompt_ids) == num_prompts
            and self.probe_ids.shape == self.probe_logits.shape
            and self.probe_ids.shape[:2] == (num_prompts, num_tokens)
            and self.draft_ids.ndim == 3
            and self.draft_ids.shape[0] == num_prompts
            and self.draft_ids.shape[1] <= num_tokens
        )
        if not shapes_agree:
            raise ValueError("array shapes do not fit each other")


def write_reference(path: Path, reference: Reference) -> None:
    """Write the arrays uncompressed, so that a reader knows their sizes before it reads."""
    np.savez(
        path,
        prompts=np.frombuffer(json.dumps(reference.prompts).encode(), np.uint8),
        prompt_lengths=np.array([len(ids) for ids in reference.prompt_ids], np.int32),
        prompt_ids=np.concatenate(reference.prompt_ids).astype(np.int32),
        greedy_ids=reference.greedy_ids,
        probe_ids=reference.probe_ids,
        probe_logits=reference.probe_logits,
        logit_scale=np.array(reference.logit_scale, np.float32),
        draft_ids=reference.draft_ids,
    )


def read_reference(path: Path) -> Reference:
    """Read a recorded reference; nothing in it can run code or unpack to more than the file.

    Raises:
        RunError: if the file is not what write_reference writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("compressed members")
        with np.load(path, allow_pickle=False) as arrays:
            return _from_arrays({name: arrays[name] for name in _ARRAYS + _LOGITS})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: not a recorded reference ({error}); export again") from None


def _from_arrays(arrays: dict[str, npt.NDArray[np.generic]]) -> Reference:
    prompts = json.loads(arrays["prompts"].tobytes())
    ends = np.cumsum(arrays["prompt_lengths"].astype(np.int64))
    return Reference(
        prompts=tuple(str(prompt) for prompt in prompts),
        prompt_ids=tuple(
            part.astype(np.int32) for part in np.split(arrays["prompt_ids"], ends[:-1])
        ),
        greedy_ids=arrays["greedy_ids"].astype(np.int32),
        probe_ids=arrays["probe_ids"].astype(np.int32),
        probe_logits=arrays["probe_logits"].astype(np.float32),
        logit_scale=float(arrays["logit_scale"].astype(np.float32)),
        draft_ids=arrays["draft_ids"].astype(np.int32),
    )


def acceptance(draft_ids: Ids, greedy_ids: Ids) -> npt.NDArray[np.float64]:
    """[K] how often draft j and all before it equal the greedy text.

    Args:
        draft_ids: [N, S, K] drafts made after greedy tokens 0 .. S - 1.
        greedy_ids: [N, M] with M >= S + K.
    """
    num_rounds, draft_length = draft_ids.shape[1:]
    followed = np.stack(
        [greedy_ids[:, 1 + j : 1 + j + num_rounds] for j in range(draft_length)], axis=-1
    )
    right = np.cumprod(draft_ids == followed, axis=-1)
    return np.asarray(right.mean(axis=(0, 1)), np.float64)
