"""What a bundle's rounds cost here: measured at the first load, then kept in the user's cache."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from runtime_py.backends import Backend, SessionOptions, default_num_threads
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.bundle.reference import pooled_acceptance
from runtime_py.decoding.policy import DraftLength, FixedDraftLength
from runtime_py.device.caches import processor, read_own, user_cache, write_beside
from runtime_py.draft_length.costs import Known
from runtime_py.draft_length.policy import AutoDraftLength

ENOUGH_S = 0.005  # of timed calls: the user waits; of a large model each is timed once
MAX_AGE_S = 86400.0  # of a measurement: a length measured too expensive is retried the next day


def auto_draft_length(
    bundle: Bundle, runtime: RuntimeName, backend: Backend, options: SessionOptions
) -> DraftLength:
    """What decides the draft length of a bundle just loaded; its KV rows may be written to."""
    widths = [width for width in backend.verify_widths if width <= backend.cache_length]
    if not backend.has_drafter or widths == [1]:
        return FixedDraftLength(0)
    digests = [bundle.manifest.files[name].sha256 for name in sorted(bundle.manifest.files)]
    made_for = (bundle.entry(runtime).model, str(options.num_threads or default_num_threads()))
    key = "\n".join([runtime, *made_for, *digests, *options.providers, processor()])
    path = user_cache("costs") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    known = None
    with contextlib.suppress(ValueError):  # of whatever was not written here
        known = Known.model_validate_json(read_own(path))
    if known and len(known.round_s) != widths[-1]:
        known = None
    if known is None or abs(time.time() - known.measured_at) > MAX_AGE_S:
        prior = known.acceptance if known else pooled_acceptance(bundle.reference())
        known = measure(backend, widths, prior)
        write_beside(path, known.model_dump_json())
    return AutoDraftLength(known, path)


def remember(policy: DraftLength) -> None:
    """Keep what it learnt, for the next time the bundle is loaded here."""
    if isinstance(policy, AutoDraftLength) and policy.path:
        write_beside(policy.path, policy.to_remember().model_dump_json())


def measure(backend: Backend, widths: list[int], prior: float) -> Known:
    """Time calls in the order of a generation, at the beginning of the context.

    Of the widths, powers of two and the widest; others cost what lies between. The least time
    counts: other programs make a call slow, nothing makes it fast.
    """
    timed = [width for width in widths if width & (width - 1) == 0 or width == widths[-1]]
    draft = partial(backend.draft, 0, np.zeros(backend.hidden_size, np.float32), 1)
    verify = {width: partial(backend.verify, [0] * width, 0) for width in timed}
    calls: list[tuple[int | str, Callable[[], object]]] = [(1, verify[1]), (1, verify[1])]
    for width in timed[1:]:
        calls += [("first draft", draft), ("later draft", draft), (width, verify[width])]
    for _, call in calls:
        call()  # warms up
    least: dict[int | str, float] = {}
    until = time.perf_counter() + ENOUGH_S
    while not least or time.perf_counter() < until:
        for name, call in calls:
            begun = time.perf_counter()
            call()
            took = max(time.perf_counter() - begun, 1e-7)  # a clock may be coarse
            least[name] = min(least.get(name, took), took)
    round_s = []
    for num_drafts in range(widths[-1]):
        width = min(width for width in widths if width > num_drafts)
        seconds = float(np.interp(width, timed, [least[width] for width in timed]))
        if num_drafts:
            seconds += least["first draft"] + (num_drafts - 1) * least["later draft"]
        round_s.append(seconds)
    return Known(
        round_s=round_s, draft_s=least["first draft"], acceptance=prior, measured_at=time.time()
    )
