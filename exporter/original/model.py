"""The original: transformers' own modules, eager, float32. Everything is compared with it.

The modules read their weights while they run, for all texts at once (weights.py), so that a model
of any size runs in the memory of its largest layer.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporter.checkpoint.reader import DrafterCheckpoint, TargetCheckpoint
from exporter.errors import ExportError, NotFiniteError
from exporter.graph.spec import TargetSpec
from exporter.graph.target import embedded_ids
from exporter.original.vendor import growing_cache, skeleton
from exporter.original.weights import Kept, LentLinear, Rows, WeightSource, give, lend
from exporter.quantize import KvRange
from runtime_py.terminal.printable import shown

KEPT_BYTES = 1 << 30  # of float32 weights: models up to this size are read once and kept
KEPT_HEAD_BYTES = 1 << 28  # of a drafter's dense head
TOKENS_AT_ONCE = 1024  # of all texts together, in one pass over the layers


class Original:
    """A target and its drafter as transformers evaluates them."""

    def __init__(
        self,
        target: TargetCheckpoint,
        drafter: DrafterCheckpoint | None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """Build both.

        Args:
            target: where the weights are read.
            drafter: is small, and kept from its first use on but for its head.
            kept_bytes: a target of at most this many float32 bytes is kept in memory too.

        Raises:
            ExportError: if transformers would refuse a checkpoint.
        """
        names = target.names()
        self.num_weights = sum(math.prod(target.shape(name)) for name in names)
        self._spec = target.spec
        said = torch.ones(target.spec.vocab_size, dtype=torch.bool)
        said[list(target.spec.suppressed_ids)] = False
        self.said_ids = said.nonzero()[:, 0]  # ascending, the tokens that are not suppressed
        self.target = _build_target(target, keep=4 * self.num_weights <= kept_bytes)
        self.drafter = None if drafter is None else _build_drafter(drafter)

    @torch.inference_mode()
    def read(self, token_ids: Sequence[int]) -> Tensor:
        """[T, V] logits of a text, read in one call."""
        whole = torch.arange(len(token_ids))
        text = embedded_ids(torch.tensor([list(token_ids)]), self._spec)
        out = self.target(input_ids=text, logits_to_keep=whole)
        logits: Tensor = out.logits[0]
        return logits

    def begin(self, texts: Sequence[Sequence[int]]) -> "Continuations":
        """Read several prompts of at least one token each."""
        groups = group_texts([len(text) for text in texts])
        return Continuations(
            [
                (group, Continuation(self.target, self.drafter, self._spec, part))
                for group, part in ((group, [texts[i] for i in group]) for group in groups)
            ]
        )


def group_texts(lengths: Sequence[int]) -> list[list[int]]:
    """Which texts to read together, padded to the longest: all, or all but one far longer.

    Padding the others to that one would cost more than reading it alone, and memory for padding.
    """
    *others, longest = sorted(range(len(lengths)), key=lambda index: lengths[index])
    if others and (lengths[longest] - lengths[others[-1]]) * len(others) > TOKENS_AT_ONCE:
        return [sorted(others), [longest]]
    return [list(range(len(lengths)))]


class Continuations:
    """Several groups of texts that grow by one token at a time, all together, in any order."""

    def __init__(self, groups: Sequence[tuple[list[int], "Continuation"]]) -> None:
        self._groups = groups
        self._order = torch.tensor([index for group, _ in groups for index in group]).argsort()

    @property
    def logits(self) -> Tensor:
        """[N, V] of each text's next token."""
        return torch.cat([texts.logits for _, texts in self._groups])[self._order]

    @property
    def hidden(self) -> Tensor:
        """[N, D], after the last norm, that these logits were made of."""
        return torch.cat([texts.hidden for _, texts in self._groups])[self._order]

    def advance(self, token_ids: Tensor) -> None:
        """Add one token to each text; token_ids is [N]."""
        for group, texts in self._groups:
            texts.advance(token_ids[group])

    def draft(self, token_ids: Tensor, draft_length: int) -> Tensor:
        """As Continuation.draft."""
        parts = [texts.draft(token_ids[group], draft_length) for group, texts in self._groups]
        return torch.cat(parts)[self._order]

    def kv_ranges(self) -> dict[int, KvRange]:
        """Of the rows of all texts, by the layers that own them."""
        found = [texts.kv_ranges() for _, texts in self._groups]
        return {
            index: KvRange(
                max(ranges[index].keys for ranges in found),
                max(ranges[index].values for ranges in found),
            )
            for index in found[0]
        }


class Continuation:
    """Texts that grow by one token at a time, all together.

    They end in the same column: shorter ones are padded on the left, as transformers does.
    """

    logits: Tensor  # [N, V] of each text's next token
    hidden: Tensor  # [N, D], after the last norm, that these logits were made of

    def __init__(
        self,
        target: Any,
        drafter: Any,
        spec: TargetSpec,
        texts: Sequence[Sequence[int]],
    ) -> None:
        self._target, self._drafter, self._spec = target, drafter, spec
        self._cache: Any = growing_cache()
        longest = max(len(text) for text in texts)
        pads = [longest - len(text) for text in texts]
        self._lengths = torch.tensor([len(text) for text in texts])
        self._mask = torch.zeros(len(texts), 0, dtype=torch.long)
        token_ids = torch.tensor(
            [[0] * pad + list(text) for pad, text in zip(pads, texts, strict=True)]
        )
        mask = torch.arange(longest) >= torch.tensor(pads)[:, None]
        step = max(1, TOKENS_AT_ONCE // len(texts))
        for start in range(0, longest, step):
            chunk = slice(start, start + step)
            self._extend(token_ids[:, chunk], mask[:, chunk].long())

    def advance(self, token_ids: Tensor) -> None:
        """Add one token to each text; token_ids is [N]."""
        self._extend(token_ids[:, None], torch.ones(len(token_ids), 1, dtype=torch.long))
        self._lengths = self._lengths + 1

    @torch.inference_mode()
    def kv_ranges(self) -> dict[int, KvRange]:
        """Of the rows of all texts, by the layers that own them."""
        is_row = self._mask[:, None, :, None]  # padding belongs to no text
        return {
            index: KvRange(
                float((layer.keys * is_row).abs().max()), float((layer.values * is_row).abs().max())
            )
            for index, layer in enumerate(self._cache.layers)
        }

    @torch.inference_mode()
    def _extend(self, token_ids: Tensor, mask: Tensor) -> None:
        self._mask = torch.cat((self._mask, mask), dim=1)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -token_ids.shape[1] :]
        with _remembered(self._target.lm_head) as hidden:
            out = self._target(
                input_ids=embedded_ids(token_ids, self._spec),
                attention_mask=self._mask,
                position_ids=positions,
                cache=self._cache,
                use_cache=True,
                # As a tensor: for a number, transformers 5.23 slices per-layer inputs, which models
                # with shared layers may lack.
                logits_to_keep=torch.tensor([token_ids.shape[1] - 1]),
            )
        self.logits, self.hidden = out.logits[:, -1], hidden[0][:, -1]

    @torch.inference_mode()
    def draft(self, token_ids: Tensor, draft_length: int) -> Tensor:
        """What the drafter proposes after one more token of each text.

        As transformers' SinglePositionMultiTokenCandidateGenerator does it, over committed rows.

        Args:
            token_ids: [N], each text's next token, which is not yet part of it.
            draft_length: K, tokens proposed.

        Returns:
            [N, K]; K is 0 without a drafter.
        """
        if self._drafter is None:
            return torch.zeros(len(token_ids), 0, dtype=torch.long)
        layers, donors = self._cache.layers, self._spec.donors
        rows = {kind: (layers[index].keys, layers[index].values) for kind, index in donors.items()}
        last, hidden = token_ids[:, None], self.hidden[:, None]
        drafts = []
        for _ in range(draft_length):
            embedding = self._target.get_input_embeddings()(embedded_ids(last, self._spec))
            out = self._drafter(
                inputs_embeds=torch.cat((embedding, hidden), dim=-1),
                position_ids=self._lengths[:, None],
                attention_mask=self._mask,
                shared_kv_states=rows,
                use_cache=False,
            )
            last, hidden = out.logits.argmax(dim=-1), out.last_hidden_state
            drafts.append(last)
        return torch.cat(drafts, dim=1)


def _build_target(checkpoint: TargetCheckpoint, keep: bool) -> Any:
    source: WeightSource = Kept(checkpoint) if keep else checkpoint
    with _refused(checkpoint.folder):
        whole = skeleton(checkpoint.folder, text_only=True)
        text = whole.model
        text.embed_tokens = Rows(text.embed_tokens, "embed_tokens.weight", source)
        if checkpoint.spec.per_layer_size:
            name = "embed_tokens_per_layer.weight"
            text.embed_tokens_per_layer = Rows(text.embed_tokens_per_layer, name, source)
        whole.lm_head = LentLinear(whole.lm_head, checkpoint.spec.head_name, source)
        lend(text, "", source)
    return whole


def _build_drafter(checkpoint: DrafterCheckpoint) -> Any:
    """All of it in memory but a dense head, which may be larger than all the rest."""
    name = checkpoint.spec.head_name
    with _refused(checkpoint.folder):
        whole = skeleton(checkpoint.folder, text_only=False)
        text, head = whole.model, whole.lm_head
        text.embed_tokens = whole.model = whole.lm_head = None  # it is handed embeddings
        give(text, "", checkpoint)
        give(whole, "", checkpoint)
        if checkpoint.spec.centroids is None:
            small = 4 * math.prod(checkpoint.shape(name)) <= KEPT_HEAD_BYTES
            head = LentLinear(head, name, Kept(checkpoint) if small else checkpoint)
        else:  # the centroid head picks rows of the matrix by itself
            head.weight = nn.Parameter(checkpoint.tensor(name), requires_grad=False)
        whole.model, whole.lm_head = text, head
    return whole


@contextlib.contextmanager
def _refused(folder: Path) -> Iterator[None]:
    """Turn what transformers raises about a checkpoint into one line."""
    try:
        yield
    except NotFiniteError:
        raise
    except Exception as error:  # transformers' errors have no common class
        reason = " ".join(str(error).split())
        if not reason or isinstance(error, LookupError):  # which names the missing thing only
            reason = f"{type(error).__name__} {reason}".strip()
        raise ExportError(
            f"{folder}: transformers cannot load the original ({shown(reason, 300)}); "
            "correct the checkpoint, it is what the export is compared with"
        ) from None


@contextlib.contextmanager
def _remembered(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the module is called with."""
    given: list[Tensor] = []

    def remember(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        given.append(inputs[0])

    handle = module.register_forward_pre_hook(remember)
    try:
        yield given
    finally:
        handle.remove()
