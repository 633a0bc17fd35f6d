"""What the calls of a bundle cost on this device: measured once, then read from the user's cache.

The cache holds nothing but milliseconds and the share of drafts that were accepted, both kept up to
date by every use, and can be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from runtime_py.backends import Backend, SessionOptions, default_num_threads
from runtime_py.bundle import Bundle
from runtime_py.call_costs import Costs
from runtime_py.draft_length import AutoDraftLength, DraftLength, FixedDraftLength
from runtime_py.manifest import RuntimeName
from runtime_py.reference import Reference, acceptance
from runtime_py.user_cache import processor, user_cache

MAX_SAMPLES = 18  # of each width, besides one that warms up; the later half counts
IN_A_ROW = 3  # rounds alike
ENOUGH_MS = 400.0  # all together: large models have one sample
_ABSURD_MS = 1e7
_MOST_BYTES = 1 << 16  # of a cache file


@dataclass(frozen=True)
class CallMs:
    """Milliseconds of each call, and what they were good for."""

    draft: float
    verify: Mapping[int, float]  # by number of tokens
    acceptance: float | None = None  # the share of drafts accepted so far, if there were any

    def costs(self, widths: Sequence[int]) -> Costs:
        """In seconds; tokens between two of these widths cost what the wider one does, padded."""
        known, known_ms = list(self.verify), list(self.verify.values())
        verify = {}
        for num_tokens in range(1, known[-1] + 1):
            width = next(width for width in widths if width >= num_tokens)
            verify[num_tokens] = float(np.interp(width, known, known_ms))
        return Costs(self.draft / 1000, {n: ms / 1000 for n, ms in verify.items()})


def auto_draft_length(
    bundle: Bundle, runtime: RuntimeName, backend: Backend, options: SessionOptions
) -> DraftLength:
    """What decides the draft length of a bundle whose graphs were just loaded.

    Its costs are read from the user's cache or measured, which writes to the KV buffer. `remember`
    what it learnt when it has decided for the last time.
    """
    if not backend.has_drafter:
        return FixedDraftLength(0)
    entry = bundle.entry(runtime)
    digests = [bundle.manifest.files[name].sha256 for name in sorted(bundle.manifest.files)]
    threads = options.num_threads or default_num_threads()
    made_for = [runtime, entry.model, *digests, *options.providers, str(threads), processor()]
    key, folder = "\n".join(made_for), user_cache("costs")
    found = device_costs(backend, key, folder)
    prior = found.acceptance
    if prior is None:
        prior = pooled_acceptance(bundle.reference())
    return _Remembered(found, backend.verify_widths, prior, _place(folder, key))


class _Remembered(AutoDraftLength):
    """Knows where to keep what it learns."""

    def __init__(self, found: CallMs, widths: Sequence[int], prior: float, path: Path) -> None:
        super().__init__(found.costs(widths), range(1, max(found.verify)), prior)
        self._widths, self._path = list(found.verify), path

    def remember(self) -> None:
        verify = {width: 1000 * self.costs.usual(width) for width in self._widths}
        _write(self._path, CallMs(1000 * self.costs.usual(0), verify, self.next_prior()))


def remember(policy: DraftLength) -> None:
    """Keep what it learnt in the user's cache, for the next time the bundle is loaded here."""
    if isinstance(policy, _Remembered):
        policy.remember()


def pooled_acceptance(reference: Reference) -> float:
    """Of all drafts that the original's target judged, the share that it accepted."""
    reached = acceptance(reference.draft_ids, reference.greedy_ids)  # position k and all before it
    return float(reached.sum() / (1 + reached[:-1].sum())) if len(reached) else 0.5


def device_costs(backend: Backend, key: str, folder: Path) -> CallMs:
    """From the cache, or measured and then kept there.

    Args:
        backend: has a drafter; its KV rows hold nothing yet, and are written to.
        key: changes with whatever changes the costs: bundle, runtime, threads, processor.
        folder: of the cache; where it cannot be written, nothing is kept.
    """
    path = _place(folder, key)
    widths = measured_widths(backend)
    found = _read(path, widths)
    if found is None:
        found = measure(backend, widths)
        _write(path, found)
    return found


def _place(folder: Path, key: str) -> Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def measured_widths(backend: Backend) -> list[int]:
    """Those worth a call: what lies between them costs what lies between."""
    widths = [width for width in backend.verify_widths if width <= backend.cache_length]
    return [width for width in widths if width & (width - 1) == 0 or width == widths[-1]]


def measure(backend: Backend, widths: list[int]) -> CallMs:
    """Run rounds of every width a few times, at the beginning of the context.

    As a generation does, drafts and then their verify, and where that is quick several such rounds
    in a row, of which the last counts: a call whose like ran before it finds its weights in the
    processor's caches. The middle of the later half of each width's times counts: in the first
    0.2 s after loading, calls of LiteRT take up to 1.3 times as long as later.
    """
    hidden = np.zeros(backend.hidden_size, np.float32)
    draft = partial(backend.draft, 0, hidden, 1)
    verify = {width: partial(backend.verify, [0] * width, 0) for width in widths}
    first_ms = _ms(draft) + sum(map(_ms, verify.values()))  # warms up, too
    in_a_row = IN_A_ROW if first_ms < ENOUGH_MS / MAX_SAMPLES else 1
    draft_ms: dict[int, list[float]] = {width: [] for width in widths}
    verify_ms: dict[int, list[float]] = {width: [] for width in widths}
    begun = time.perf_counter()
    for _ in range(MAX_SAMPLES):
        for width in widths:
            for _ in range(in_a_row):
                drafts = sum(_ms(draft) for _ in range(width - 1))
                verified = _ms(verify[width])
            draft_ms[width].append(drafts / max(1, width - 1))
            verify_ms[width].append(verified)
        if 1000 * (time.perf_counter() - begun) > ENOUGH_MS:
            break
    middle = widths[len(widths) // 2]  # its drafts stand for those of any round
    later = len(verify_ms[1]) // 2
    return CallMs(
        median(draft_ms[middle][later:]) if middle > 1 else _ms(draft),
        {width: median(times[later:]) for width, times in verify_ms.items()},
    )


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return max(1000 * (time.perf_counter() - start), 1e-6)  # a clock may be coarse


def _read(path: Path, widths: list[int]) -> CallMs | None:
    """None for whatever is not what `_write` wrote: then it is measured again."""
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MOST_BYTES))
        verify = {int(width): float(ms) for width, ms in values["verify"].items()}
        accepted = values.get("acceptance")
        found = CallMs(
            float(values["draft"]), verify, None if accepted is None else float(accepted)
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    sane = all(0 < ms < _ABSURD_MS for ms in (found.draft, *verify.values()))
    sane = sane and (found.acceptance is None or 0 <= found.acceptance <= 1)
    return found if sane and sorted(verify) == widths else None


def _write(path: Path, found: CallMs) -> None:
    """Beside, then renamed: another process sees all of it or nothing."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(found), file)
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
