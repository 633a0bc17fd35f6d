"""What the calls of a bundle cost on this device: measured once, then read from the user's cache.

The cache holds nothing but milliseconds, how well each is known, the share of drafts that were
accepted and what they gained, kept up to date by every use, and can be deleted at any time.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from runtime_py.backends import Backend, SessionOptions, default_num_threads
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.bundle.reference import Reference, acceptance
from runtime_py.decoding.policy import DraftLength, FixedDraftLength
from runtime_py.device.caches import open_own, private_folder, processor, user_cache, write_beside
from runtime_py.draft_length.costs import LEAST_LOOKS, MOST_LOOKS, NUM_MEASURED, Costs
from runtime_py.draft_length.policy import AutoDraftLength

MAX_SAMPLES = 18  # of each width, besides one that warms up; the later half counts
IN_A_ROW = 3  # rounds alike
QUICK_MS = 20.0  # a round of each width, together
MOST_FIRST = 2.0  # draft steps that the first of a round may take more
ENOUGH_MS = 1000.0  # all together: large models have one sample
_LEAST_MS, _ABSURD_MS = 1e-6, 1e7
_ABSURD_RATIO = 1e4  # of one call's time and another's
_MOST_BYTES = 1 << 16  # of a cache file


@dataclass(frozen=True)
class CallMs:
    """Milliseconds of each call, and what they were good for."""

    draft: float
    verify: Mapping[int, float]  # by width
    looks: Mapping[int, float]  # that each stands for, by width, and of a draft step by 0
    first: float = 0.0  # draft steps that the first of a round takes more
    acceptance: float | None = None  # the share of drafts accepted so far, if there were any
    gain: float = 0.0  # the time that drafts saved, as a share of the time taken

    def costs(self) -> Costs:
        """In seconds."""
        verify = {width: ms / 1000 for width, ms in self.verify.items()}
        return Costs(self.draft / 1000, verify, self.looks, self.first)


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
    return _Remembered(found, prior, _place(folder, key))


class _Remembered(AutoDraftLength):
    """Knows where to keep what it learns."""

    def __init__(self, found: CallMs, prior: float, path: Path) -> None:
        super().__init__(found.costs(), range(1, max(found.verify)), prior, found.gain)
        self._found, self._path = found, path

    def remember(self) -> None:
        self.take_in()
        usual = {width: self.costs.usual(width) for width in (0, *self._found.verify)}
        ms = {width: 1000 * seconds for width, (seconds, _) in usual.items()}
        looks = {width: num_looks for width, (_, num_looks) in usual.items()}
        first = min(max(self.costs.first, 0.0), MOST_FIRST)
        kept = CallMs(ms.pop(0), ms, looks, first, self.next_prior(), self.next_gain())
        write_beside(self._path, json.dumps(asdict(kept)))


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
        folder: of the cache; where it cannot be written, or by others too, nothing is kept.
    """
    path = _place(folder, key)
    widths = [width for width in backend.verify_widths if width <= backend.cache_length]
    found = _read(path, widths)
    if found is None:
        found = measure(backend, widths)
        write_beside(path, json.dumps(asdict(found)))
    return found


def _place(folder: Path, key: str) -> Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def measure(backend: Backend, widths: list[int]) -> CallMs:
    """Run rounds of the widths a few times, at the beginning of the context.

    Those that are powers of two, and the widest: others are taken to cost what lies between, which
    is as good as one look.

    As a generation does, drafts and then their verify, and where that is quick several such rounds
    in a row, of which the last counts: a call whose like ran before it finds its weights in the
    processor's caches. The least of the later half of each width's times counts: in the first
    0.2 s after loading, calls of LiteRT take up to 1.3 times as long as later; and other work that
    comes and goes may double the middle of one width's times and not of another's.
    """
    everyone = widths
    widths = [width for width in widths if width & (width - 1) == 0 or width == widths[-1]]
    hidden = np.zeros(backend.hidden_size, np.float32)
    draft = partial(backend.draft, 0, hidden, 1)
    verify = {width: partial(backend.verify, [0] * width, 0) for width in widths}
    first_ms = _ms(draft) + sum(map(_ms, verify.values()))  # warms up, too
    in_a_row = IN_A_ROW if first_ms < QUICK_MS else 1
    drafts_ms: dict[int, list[float]] = {width: [] for width in widths}
    verify_ms: dict[int, list[float]] = {width: [] for width in widths}
    begun = time.perf_counter()
    for _ in range(MAX_SAMPLES):
        for width in widths:
            for _ in range(in_a_row):
                drafts = sum(_ms(draft) for _ in range(width - 1))
                verified = _ms(verify[width])
            drafts_ms[width].append(drafts)
            verify_ms[width].append(verified)
        if 1000 * (time.perf_counter() - begun) > ENOUGH_MS:
            break
    later = len(verify_ms[1]) // 2
    looks = min(float(len(verify_ms[1]) - later), NUM_MEASURED)
    verify_least = [min(times[later:]) for times in verify_ms.values()]
    drafts_least = {width - 1: min(drafts_ms[width][later:]) for width in widths[1:]}
    draft_ms, first = _draft_step(drafts_least or {1: _ms(draft)})
    return CallMs(
        draft_ms,
        {width: float(np.interp(width, widths, verify_least)) for width in everyone},
        dict.fromkeys((0, *everyone), 1.0) | dict.fromkeys((0, *widths), looks),
        first,
    )


def _draft_step(drafts_ms: Mapping[int, float]) -> tuple[float, float]:
    """Of rounds by their number of drafts: one step, and what the first takes more, in steps."""
    lengths = list(drafts_ms)
    first = 0.0
    if len(lengths) > 1:
        rise = (drafts_ms[lengths[-1]] - drafts_ms[lengths[0]]) / (lengths[-1] - lengths[0])
        first = min(max(drafts_ms[lengths[0]] / max(rise, 1e-6) - lengths[0], 0.0), MOST_FIRST)
    middle = lengths[len(lengths) // 2]
    return drafts_ms[middle] / (middle + first), first


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return max(1000 * (time.perf_counter() - start), _LEAST_MS)  # a clock may be coarse


def _read(path: Path, widths: list[int]) -> CallMs | None:
    """None for whatever was not kept by this module: then it is measured again."""
    if private_folder(path.parent) is None:
        return None
    try:
        with open_own(path) as file:
            values = json.loads(file.read(_MOST_BYTES))
        verify = {int(width): float(ms) for width, ms in values["verify"].items()}
        first = float(values["first"])
        looks = {int(width): float(number) for width, number in values["looks"].items()}
        accepted = values.get("acceptance")
        accepted = None if accepted is None else float(accepted)
        gain = float(values["gain"])
        found = CallMs(float(values["draft"]), verify, looks, first, accepted, gain)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    except (RecursionError, OverflowError):  # nested too deep, or a whole number past any float
        return None
    all_ms = (found.draft, *verify.values())
    sane = all(_LEAST_MS <= ms < _ABSURD_MS for ms in all_ms)
    sane = sane and max(all_ms) <= _ABSURD_RATIO * min(all_ms)
    sane = sane and all(LEAST_LOOKS <= number <= MOST_LOOKS for number in looks.values())
    sane = sane and 0 <= first <= MOST_FIRST and 0 <= gain < max(widths)
    sane = sane and (found.acceptance is None or 0 <= found.acceptance <= 1)
    return found if sane and sorted(verify) == widths and sorted(looks) == [0, *widths] else None
