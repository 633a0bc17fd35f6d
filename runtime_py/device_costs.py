"""What the calls of a bundle cost on this device: measured once, then read from the user's cache.

The cache holds nothing but milliseconds, and can be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from runtime_py.backends import Backend, SessionOptions, default_num_threads
from runtime_py.bundle import Bundle
from runtime_py.draft_length import AutoDraftLength, Costs, DraftLength, FixedDraftLength
from runtime_py.manifest import RuntimeName
from runtime_py.reference import Reference, acceptance
from runtime_py.user_cache import processor, user_cache

MAX_SAMPLES = 5  # of each call, besides one that warms up; the fastest counts
ENOUGH_S = 0.02  # samples of one call need take no longer: large models have one or two
_ABSURD_MS = 1e7
_MOST_BYTES = 1 << 16  # of a cache file


@dataclass(frozen=True)
class CallMs:
    """Milliseconds of each call."""

    draft: float
    verify: Mapping[int, float]  # by number of tokens

    def costs(self) -> Costs:
        return Costs(self.draft / 1000, {n: ms / 1000 for n, ms in self.verify.items()})


def auto_draft_length(
    bundle: Bundle, runtime: RuntimeName, backend: Backend, options: SessionOptions
) -> DraftLength:
    """What decides the draft length of a bundle whose graphs were just loaded.

    Its costs are read from the user's cache or measured, which writes to the KV buffer.
    """
    if not backend.has_drafter:
        return FixedDraftLength(0)
    entry = bundle.entry(runtime)
    digests = [bundle.manifest.files[name].sha256 for name in sorted(bundle.manifest.files)]
    threads = options.num_threads or default_num_threads()
    made_for = [runtime, entry.model, *digests, *options.providers, str(threads), processor()]
    costs = device_costs(backend, "\n".join(made_for), user_cache("costs")).costs()
    lengths = [width - 1 for width in backend.verify_widths if width > 1]
    return AutoDraftLength(costs, lengths, _pooled_acceptance(bundle.reference()))


def _pooled_acceptance(reference: Reference) -> float:
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
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    widths = measured_widths(backend)
    found = _read(path, widths)
    if found is None:
        found = measure(backend, widths)
        _write(path, found)
    return found


def measured_widths(backend: Backend) -> list[int]:
    """Those worth a call: what lies between them costs what lies between."""
    widths = [width for width in backend.verify_widths if width <= backend.cache_length]
    return [width for width in widths if width & (width - 1) == 0 or width == widths[-1]]


def measure(backend: Backend, widths: list[int]) -> CallMs:
    """Run every call a few times, at the beginning of the context."""
    verify = {width: _fastest_ms(partial(backend.verify, [0] * width, 0)) for width in widths}
    hidden = np.zeros(backend.hidden_size, np.float32)
    return CallMs(_fastest_ms(partial(backend.draft, 0, hidden, 1)), verify)


def _fastest_ms(call: Callable[[], object]) -> float:
    call()
    seconds: list[float] = []
    while len(seconds) < MAX_SAMPLES and sum(seconds) < ENOUGH_S:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1000 * max(min(seconds), 1e-9)  # a clock may be coarse


def _read(path: Path, widths: list[int]) -> CallMs | None:
    """None for whatever is not what `_write` wrote: then it is measured again."""
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MOST_BYTES))
        verify = {int(width): float(ms) for width, ms in values["verify"].items()}
        found = CallMs(float(values["draft"]), verify)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    sane = all(0 < ms < _ABSURD_MS for ms in (found.draft, *verify.values()))
    return found if sane and sorted(verify) == widths else None


def _write(path: Path, found: CallMs) -> None:
    """Beside, then renamed: another process sees all of it or nothing."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"draft": found.draft, "verify": found.verify}, file)
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
