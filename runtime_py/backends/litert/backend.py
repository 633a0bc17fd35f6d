"""Run the models of one .litertlm over one shared KV buffer."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from runtime_py.backends import (
    FloatArray,
    check_draft,
    check_request,
    check_verify,
    default_num_threads,
)
from runtime_py.backends.kv_pages import KvPages
from runtime_py.backends.litert.contract import (
    EMBEDDER,
    MTP_DRAFTER,
    PER_LAYER_EMBEDDER,
    PREFILL_DECODE,
    SignatureSpec,
    check_drafter,
    check_embedder,
    read_target,
)
from runtime_py.backends.litert.kv import kv_pages
from runtime_py.backends.litert.model import (
    Array,
    BoundSignature,
    LoadedModel,
    native_messages_hidden,
    zeros,
)
from runtime_py.backends.litert.weight_cache import weight_cache
from runtime_py.bundle.sliding import KEY, read_sliding
from runtime_py.device.caches import private_folder, user_cache
from runtime_py.errors import RunError
from runtime_py.formats.litertlm import find_model, read_metadata, read_sections

# The official runtime's value: far below any score, and the sum of two is still a float32.
_HIDDEN = np.float32(-0.7 * np.finfo(np.float32).max)


class LiteRTBackend:
    """A .litertlm with the official signature contract, run on the CPU.

    Args:
        path: the .litertlm file; its weights stay in it and are not copied.
        num_threads: CPU threads; default: the available cores, at most 4.
        cache_dir: where repacked weights are kept between runs, in a file about as large as the
            model that may be deleted; default: the user's cache directory. If other users can
            write to it, the weights stay in memory.

    Raises:
        RunError: if LiteRT is not installed, or the file is damaged or not of the contract.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self._path = path
        self._cache_dir = private_folder(cache_dir or user_cache("litert"))
        self._sections = read_sections(path)
        self._models: list[LoadedModel] = []
        self._num_threads = num_threads or default_num_threads()
        self._pages = KvPages((), None)
        self._let_go()
        try:
            with native_messages_hidden():
                self._load()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # its frames refer to models and buffers
            self.close()
            raise

    @property
    def has_drafter(self) -> bool:
        return self._drafter is not None

    @property
    def resumable_from(self) -> int:
        return self._pages.resumable_from

    def prefill(self, token_ids: Sequence[int], position: int) -> None:
        check_request(self, token_ids, position)
        done = 0
        for step, num_tokens in self._prefill_plan(len(token_ids), position):
            self._pages.before(position + done)
            step.run(token_ids[done : done + num_tokens], position + done)
            done += num_tokens

    def verify(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        check_verify(self, token_ids, position)
        self._pages.before(position)
        for width, step in self._verify.items():
            if width >= len(token_ids) and position + width <= self.cache_length:
                return step.run(token_ids, position)
        return self._verify_in_parts(token_ids, position)

    def draft(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        if self._drafter is None:
            raise RunError(f"{self._path}: no drafter in this bundle; export again with a drafter")
        check_draft(self, token_id, position)
        return self._drafter.run(token_id, hidden, position)

    def close(self) -> None:
        """Free models and buffers; the backend cannot be used afterwards."""
        self._let_go()
        with native_messages_hidden():
            for model in self._models:
                model.close()
            self._models.clear()

    def _let_go(self) -> None:
        self._prefill: dict[int, _TargetStep] = {}
        self._verify: dict[int, _TargetStep] = {}
        self.verify_widths: tuple[int, ...] = ()
        self._drafter: _DraftStep | None = None
        self._pages.close()
        self._kv: dict[str, Array] = {}

    def _load(self) -> None:
        target = self._model(PREFILL_DECODE, cached=True)
        if target is None:
            raise RunError(f"{self._path}: no section {PREFILL_DECODE}; export again")
        contract = read_target(target.signatures)
        self.vocab_size, self.hidden_size = contract.vocab_size, contract.hidden_size
        self.cache_length = contract.cache_length
        lookups = {"embeddings": self._lookup(EMBEDDER, contract.embeddings_shape)}
        if contract.per_layer_shape:
            lookups["per_layer_embeddings"] = self._lookup(
                PER_LAYER_EMBEDDER, contract.per_layer_shape
            )
        # A stale row is hidden by the mask, which multiplies it by zero: it must not be a NaN.
        self._kv = {name: zeros(tensor) for name, tensor in contract.kv.items()}
        sliding = read_sliding(
            self._path, read_metadata(self._path).get(KEY, ""), contract.kv_layers
        )
        self._pages = kv_pages(self._kv, contract.cache_length, sliding)
        self._prefill, self._verify = (
            {
                width: _TargetStep(spec, partial(target.bind, spec, self._kv), lookups)
                for width, spec in specs.items()
            }
            for specs in (contract.prefill, contract.verify)
        )
        self.verify_widths = tuple(self._verify)
        drafter = self._model(MTP_DRAFTER, cached=True)
        if drafter is not None:
            spec = check_drafter(drafter.signatures, contract)
            self._drafter = _DraftStep(drafter.bind(spec, self._kv), lookups["embeddings"])
        for model in self._models:
            model.release()

    def _model(self, model_type: str, *, cached: bool) -> LoadedModel | None:
        section = find_model(self._sections, model_type)
        if section is None:
            return None
        cache = partial(weight_cache, self._cache_dir, self._path, section) if cached else None
        model = LoadedModel(self._path, section, self._num_threads, cache)
        self._models.append(model)
        return model

    def _lookup(self, model_type: str, shape: tuple[int, ...]) -> "_Lookup":
        model = self._model(model_type, cached=False)  # XNNPACK repacks no embedding table
        if model is None:
            raise RunError(f"{self._path}: no section {model_type}; export again")
        return _Lookup(model.bind(check_embedder(model.signatures, shape), {}))

    def _prefill_plan(self, num_tokens: int, position: int) -> Iterator[tuple["_TargetStep", int]]:
        """The steps of a prefill, and how many tokens each takes."""
        while num_tokens:
            step = self._prefill_step(num_tokens, self.cache_length - position)
            taken = min(step.width, num_tokens)
            yield step, taken
            num_tokens -= taken
            position += taken

    def _prefill_step(self, num_tokens: int, room: int) -> "_TargetStep":
        """The widest prefill graph that the tokens fill, else one that they fill to a quarter.

        A prefill graph skips the head and the layers that own no KV rows, so it costs less than
        half of a verify graph of its width. A graph writes all its rows, and LiteRT would shift
        rows past the end of the cache down over committed ones; so width <= room.
        """
        prefill = [step for width, step in self._prefill.items() if width <= room]
        filled = [step for step in prefill if step.width <= num_tokens]
        if filled:
            return filled[-1]
        if prefill and prefill[0].width <= 4 * num_tokens:
            return prefill[0]
        limit = min(room, 2 * num_tokens)
        verify = [step for width, step in self._verify.items() if width <= limit]
        return next((step for step in verify if step.width >= num_tokens), verify[-1])

    def _verify_in_parts(
        self, token_ids: Sequence[int], position: int
    ) -> tuple[FloatArray, FloatArray]:
        """Near the end of the cache, no graph that is wide enough has room for its rows."""
        logits, hidden, done = [], [], 0
        while done < len(token_ids):
            room = min(self.cache_length - position, len(token_ids)) - done
            width = max(width for width in self._verify if width <= room)
            part = self._verify[width].run(token_ids[done : done + width], position + done)
            logits.append(part[0].copy())
            hidden.append(part[1].copy())
            done += width
        return np.concatenate(logits), np.concatenate(hidden)


# Per-token writes go through memoryviews: numpy takes five times as long to set a number or copy a
# row, most of it on dispatch.


def _integers(array: Array) -> "memoryview[int]":
    """An int32 array as a flat view."""
    return array.data.cast("B").cast("i")


def _floats(array: Array) -> "memoryview[float]":
    """A float32 array as a flat view."""
    return array.data.cast("B").cast("f")


class _Lookup:
    """An embedding table that gives one row per call, as in the official graphs.

    The last rows are cached: a drafted token is looked up again when it is verified, and text
    repeats itself.
    """

    _NUM_KEPT = 64  # rows: 2.7 MB of E2B's two tables

    def __init__(self, signature: BoundSignature) -> None:
        self._signature = signature
        (token_ids,), (rows,) = signature.inputs.values(), signature.outputs.values()
        self._token_id, self._row = _integers(token_ids), _floats(rows)
        self._kept: dict[int, memoryview[float]] = {}  # by token, oldest first

    def into(self, token_id: int, destination: "memoryview[float]") -> None:
        row = self._kept.get(token_id)
        destination[:] = self._look_up(token_id) if row is None else row

    def _look_up(self, token_id: int) -> "memoryview[float]":
        self._token_id[0] = token_id
        self._signature.run()
        if len(self._kept) < self._NUM_KEPT:
            row = _floats(np.empty(len(self._row), np.float32))
        else:
            row = self._kept.pop(next(iter(self._kept)))
        row[:] = self._row
        self._kept[token_id] = row
        return row


class _CausalMask:
    """An additive mask [1, 1, T, C]; only the columns that changed are rewritten."""

    _FEW = 16  # columns

    def __init__(self, mask: FloatArray) -> None:
        self._rows = mask[0, 0]
        num_rows, num_columns = self._rows.shape
        self._numbers = _floats(mask)
        self._diagonal = range(0, num_rows * (num_columns + 1), num_columns + 1)
        self._num_visible = 0
        self._rows[...] = _HIDDEN
        for index, row in enumerate(self._rows):
            row[:index] = 0.0

    def show(self, num_visible: int) -> None:
        """Let row i see the KV rows 0 .. num_visible + i - 1."""
        before, self._num_visible = self._num_visible, num_visible
        if 0 <= num_visible - before <= self._FEW:
            for start in self._diagonal:
                for column in range(before, num_visible):
                    self._numbers[start + column] = 0.0
            return
        for index, row in enumerate(self._rows):
            row[before + index : num_visible + index] = 0.0
            row[num_visible + index : before + index] = _HIDDEN


class _TargetStep:
    """The target at one width T; its buffers are allocated when it first runs.

    Short prompts never need those of a wide prefill, 60 MB in E2B.
    """

    def __init__(
        self, spec: SignatureSpec, bind: Callable[[], BoundSignature], lookups: dict[str, _Lookup]
    ) -> None:
        (self.width,) = spec.inputs["input_pos"].shape
        self._bind = bind
        self._lookups = lookups
        self._bound: _BoundTarget | None = None

    def run(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        """Logits and hidden states of the given tokens; later rows become stale."""
        if self._bound is None:
            self._bound = _BoundTarget(self._bind(), self.width, self._lookups)
        return self._bound.run(token_ids, position)


class _BoundTarget:
    """A target's signature, with the mask and positions of its last call."""

    def __init__(self, signature: BoundSignature, width: int, lookups: dict[str, _Lookup]) -> None:
        self._signature = signature
        self._width = width
        self._positions = _integers(signature.inputs["input_pos"])  # [T]
        self._mask = _CausalMask(signature.inputs["mask"])
        self._lookups = [
            (lookup, [_floats(row) for row in signature.inputs[name][0]])
            for name, lookup in lookups.items()
        ]
        empty = np.zeros((1, width, 0), np.float32)
        self._logits = signature.outputs.get("logits", empty)[0]  # [T, V]
        self._hidden = signature.outputs.get("activations", empty)[0]  # [T, D]

    def run(self, token_ids: Sequence[int], position: int) -> tuple[FloatArray, FloatArray]:
        for lookup, rows in self._lookups:
            for token_id, row in zip(token_ids, rows, strict=False):
                lookup.into(token_id, row)
        for index in range(self._width):
            self._positions[index] = position + index
        self._mask.show(position + 1)
        self._signature.run()
        num_tokens = len(token_ids)
        if num_tokens == self._width:
            return self._logits, self._hidden
        return self._logits[:num_tokens], self._hidden[:num_tokens]


class _DraftStep:
    """The drafter, which sees only the committed rows 0 .. position - 1."""

    def __init__(self, signature: BoundSignature, embedder: _Lookup) -> None:
        self._signature = signature
        self._embedder = embedder
        activations = _floats(signature.inputs["activations"])  # [2D]
        size = len(activations) // 2
        self._embedding, self._hidden = activations[:size], activations[size:]
        self._position = _integers(signature.inputs["input_pos"])  # [1]
        self._mask = _CausalMask(signature.inputs["mask"])
        self._logits = signature.outputs["logits"][0, 0]
        self._projected = signature.outputs["projected_activations"][0, 0]

    def run(
        self, token_id: int, hidden: FloatArray, position: int
    ) -> tuple[FloatArray, FloatArray]:
        self._embedder.into(token_id, self._embedding)
        self._hidden[:] = _floats(hidden)
        self._position[0] = position
        self._mask.show(position)
        self._signature.run()
        return self._logits, self._projected
