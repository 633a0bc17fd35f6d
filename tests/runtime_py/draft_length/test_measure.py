"""What calls cost on this device: measured at load, kept in the user's cache."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime_py.backends import SessionOptions
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.policy import FixedDraftLength, Outcome
from runtime_py.draft_length import measure as module
from runtime_py.draft_length.costs import FADED, NUM_MEASURED
from runtime_py.draft_length.measure import CallMs, auto_draft_length, device_costs
from runtime_py.draft_length.policy import AutoDraftLength
from tests.runtime_py.bundles import VOCAB_SIZE, write_fake_bundle
from tests.runtime_py.scripted_backend import ScriptedBackend

DRAFT_S, CALL_S, TOKEN_S = 0.002, 0.004, 0.002


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Only the backend makes time pass."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
    monkeypatch.setattr(SleepingBackend, "clock", clock, raising=False)
    return clock


class SleepingBackend(ScriptedBackend):
    """Takes its time, and says nothing worth reading."""

    clock: SimpleNamespace

    def verify(self, token_ids, position):
        self.num_calls["verify"] += 1
        assert position + len(token_ids) <= self.cache_length
        self.clock.now_s += CALL_S + TOKEN_S * len(token_ids)

    def draft(self, token_id, hidden, position):
        self.num_calls["draft"] += 1
        assert token_id == 0
        assert position >= 1
        assert hidden.shape == (self.hidden_size,)
        self.clock.now_s += DRAFT_S


def test_measures_every_call_and_reads_it_the_next_time(tmp_path):
    backend, folder = SleepingBackend(), tmp_path / "costs"
    found = device_costs(backend, "a bundle", folder)
    assert found.draft == pytest.approx(1000 * DRAFT_S)
    assert list(found.verify) == [1, 2, 4, 8]
    for width, ms in found.verify.items():
        assert ms == pytest.approx(1000 * (CALL_S + TOKEN_S * width))
    calls = dict(backend.num_calls)
    assert device_costs(backend, "a bundle", folder) == found
    assert backend.num_calls == calls
    assert [path.suffix for path in folder.iterdir()] == [".json"]
    device_costs(backend, "another bundle", folder)
    assert backend.num_calls != calls


def test_a_slow_call_is_measured_once_besides_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ENOUGH_MS", 1.0)
    backend = SleepingBackend()
    device_costs(backend, "key", tmp_path)
    assert backend.num_calls == {"prefill": 0, "verify": 2 * 4, "draft": 1 + (1 + 3 + 7)}


@pytest.mark.parametrize("enough_ms", [1e9, 1.0], ids=["quick", "slow, measured once"])
def test_a_call_costs_what_it_costs_after_its_like(enough_ms, tmp_path, monkeypatch):
    """A draft after a draft is cheaper here, and where it is quick so is a decode after a decode.

    Else three and seven drafts looked a fifth too dear once rounds had one draft for a while.
    """
    monkeypatch.setattr(module, "ENOUGH_MS", enough_ms)
    monkeypatch.setattr(module, "QUICK_MS", enough_ms)

    class Caching(SleepingBackend):
        last = ""

        def verify(self, token_ids, position):
            self.clock.now_s += 0.001 * (self.last != f"verify {len(token_ids)}")
            self.last = f"verify {len(token_ids)}"
            super().verify(token_ids, position)

        def draft(self, token_id, hidden, position):
            self.clock.now_s += 0.001 * (self.last != "draft")
            self.last = "draft"
            super().draft(token_id, hidden, position)

    found = device_costs(Caching(), "key", tmp_path)
    quick = enough_ms > 1
    assert found.verify[1] == pytest.approx(1000 * (CALL_S + TOKEN_S) + (not quick))
    assert found.verify[4] == pytest.approx(1000 * (CALL_S + 4 * TOKEN_S) + 1)
    assert found.draft == pytest.approx(1000 * DRAFT_S)
    assert found.first == pytest.approx(1 / (1000 * DRAFT_S))  # which here takes 1 ms more


def test_widths_past_the_context_are_left_out(tmp_path):
    assert list(device_costs(SleepingBackend(cache_length=7), "key", tmp_path).verify) == [1, 2, 4]


def test_where_only_decode_fits_a_draft_step_is_measured_alone(tmp_path):
    found = device_costs(SleepingBackend(cache_length=1), "key", tmp_path)
    assert list(found.verify) == [1]
    assert found.draft == pytest.approx(1000 * DRAFT_S)
    assert found.first == 0


WHOLE = {"1": 1, "2": 1, "4": 1, "8": 1}
LOOKS = {"0": 5, "1": 5, "2": 5, "4": 5, "8": 5}


def cache_file(verify, **values) -> bytes:
    return json.dumps(
        {"draft": 1, "verify": verify, "looks": LOOKS, "first": 0.2, "gain": 0.1} | values
    ).encode()


def test_a_whole_cache_is_read(tmp_path):
    device_costs(SleepingBackend(), "key", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(cache_file(WHOLE))
    assert device_costs(SleepingBackend(), "key", tmp_path).verify == {1: 1, 2: 1, 4: 1, 8: 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"{}",
        cache_file({"1": 1, "2": 1, "4": 1}),
        cache_file({"1": 1, "2": 1, "4": 1, "8": 1, "16": 1}),
        cache_file(WHOLE, draft=-1),
        cache_file(WHOLE, draft=float("nan")),
        cache_file(WHOLE | {"1": float("inf")}),
        cache_file({"one": 1, "2": 1, "4": 1, "8": 1}),
        cache_file([1, 1, 1, 1]),
        cache_file(WHOLE, looks={"0": 5, "1": 5}),
        cache_file(WHOLE, looks=LOOKS | {"8": 0}),
        cache_file(WHOLE, looks=LOOKS | {"8": 1e-9}),
        cache_file(WHOLE, first=-0.1),
        cache_file(WHOLE, first=float("inf")),
        cache_file(WHOLE, gain=-0.1),
        cache_file(WHOLE, gain=float("nan")),
        cache_file(WHOLE, gain=8),
        cache_file(WHOLE, looks=LOOKS | {"8": float("inf")}),
        cache_file(WHOLE, looks=LOOKS | {"8": 1e300}),
        cache_file(WHOLE, draft=5e-324),
        cache_file(dict.fromkeys(WHOLE, 1e-310), draft=1e-310),
        cache_file(WHOLE | {"1": 2e4}),
        cache_file(WHOLE, draft=10**400),
        b'{"draft": 1, "verify": {"1": 1, "2": 1, "4": 1, "8": 1}}',
        b'{"draft": 1' + b"[" * 60_000,
        b"[" * 200_000,
    ],
)
def test_a_damaged_cache_is_measured_again_and_replaced(tmp_path, content):
    found = device_costs(SleepingBackend(), "key", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    backend = SleepingBackend()
    again = device_costs(backend, "key", tmp_path)
    assert backend.num_calls["draft"]
    assert sorted(again.verify) == sorted(found.verify)
    assert json.loads(path.read_text())["draft"] == again.draft


def test_where_nothing_can_be_kept_it_is_measured_all_the_same(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert device_costs(SleepingBackend(), "key", tmp_path / "file" / "costs").draft > 0


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        device_costs(SleepingBackend(), "key", tmp_path)
    assert not list(tmp_path.iterdir())


def test_costs_are_neither_read_nor_kept_where_others_can_write(tmp_path):
    device_costs(SleepingBackend(), "key", tmp_path)
    (kept,) = tmp_path.iterdir()
    times = kept.stat().st_mtime_ns
    tmp_path.chmod(0o777)
    assert module._read(kept, [1, 2, 4, 8]) is None
    device_costs(SleepingBackend(), "key", tmp_path)
    assert kept.stat().st_mtime_ns == times


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Bundle:
    monkeypatch.setattr(module, "user_cache", lambda part: tmp_path / "cache" / part)
    return Bundle.open(write_fake_bundle(tmp_path / "bundle"))


def load(bundle: Bundle, backend: SleepingBackend | None = None) -> AutoDraftLength:
    """What a use of the bundle begins with."""
    policy = auto_draft_length(bundle, "litert", backend or SleepingBackend(), SessionOptions(1))
    assert isinstance(policy, AutoDraftLength)
    return policy


def test_begins_with_what_the_original_drafter_accepted(bundle):
    policy = load(bundle, SleepingBackend(vocab_size=VOCAB_SIZE))
    assert len(policy.acceptance) == 7
    reference = bundle.reference()
    right = tried = 0
    for text, rounds in zip(reference.greedy_ids, reference.draft_ids, strict=True):
        for start, drafts in enumerate(rounds):
            for position, draft in enumerate(drafts):
                tried += 1
                if draft != text[start + 1 + position]:
                    break
                right += 1
    assert policy.acceptance[0] == pytest.approx(min(max(right / tried, 0.1), 0.98))


def test_each_runtime_and_thread_count_has_costs_of_its_own(bundle, tmp_path):
    for threads in (1, 2, 1):
        auto_draft_length(bundle, "litert", SleepingBackend(), SessionOptions(threads))
    assert len(list((tmp_path / "cache" / "costs").iterdir())) == 2


def test_without_a_drafter_nothing_is_measured(bundle):
    backend = SleepingBackend()
    backend.has_drafter = False
    policy = auto_draft_length(bundle, "litert", backend, SessionOptions(1))
    assert isinstance(policy, FixedDraftLength)
    assert backend.num_calls["verify"] == 0


def test_the_least_of_the_later_times_counts(tmp_path, clock, monkeypatch):
    """Something else runs nearly all the time; where it stopped for some widths alone, the others
    looked up to twice as dear as they are, and were not tried for many uses."""
    monkeypatch.setattr(module, "ENOUGH_MS", 1e9)
    monkeypatch.setattr(module, "QUICK_MS", 1e9)

    class Interrupted(SleepingBackend):
        def draft(self, *arguments):
            super().draft(*arguments)
            turn = (self.num_calls["draft"] - 2) // (3 * (1 + 3 + 7))
            if turn < 17:  # of 18: the first nine, and all but one of those that count
                clock.now_s += 0.01

    backend = Interrupted()
    assert device_costs(backend, "key", tmp_path).draft == pytest.approx(1000 * DRAFT_S)
    assert backend.num_calls["draft"] == 1 + 18 * 3 * (1 + 3 + 7)


def test_costs_are_seconds_and_padding_costs_what_tokens_do():
    call_ms = CallMs(2.0, {1: 4.0, 2: 5.0, 4: 6.0, 8: 8.0}, {0: 1.0, 4: 3.0}, first=0.5)
    costs = call_ms.costs()
    assert [costs.drafts(n) for n in (1, 3)] == pytest.approx([0.003, 0.007])
    assert [1000 * costs.verify(n) for n in range(1, 10)] == pytest.approx(
        [4, 5, 6, 6, 8, 8, 8, 8, 8]
    )
    costs.observe_decodes([0.004])
    looks = [costs.usual(width)[1] for width in (0, 1, 4)]
    assert looks == [FADED * 1, NUM_MEASURED + 1, FADED * 3]


def test_a_width_between_measured_ones_is_guessed(tmp_path):
    """A graph for each number of tokens, some of them measured."""
    called = set()

    class Noting(SleepingBackend):
        def verify(self, token_ids, position):
            called.add(len(token_ids))
            super().verify(token_ids, position)

    backend = Noting()
    backend.verify_widths = tuple(range(1, 9))
    found = device_costs(backend, "key", tmp_path)
    assert called == {1, 2, 4, 8}
    assert found.verify == pytest.approx(
        {width: 1000 * (CALL_S + TOKEN_S * width) for width in range(1, 9)}
    )
    assert {width for width, looks in found.looks.items() if looks > 1} == {0, 1, 2, 4, 8}


@pytest.mark.parametrize(("enough_ms", "looks"), [(0, 1), (1e9, NUM_MEASURED)])
def test_what_was_sampled_once_counts_as_one_look(tmp_path, monkeypatch, enough_ms, looks):
    monkeypatch.setattr(module, "ENOUGH_MS", enough_ms)
    found = device_costs(SleepingBackend(), "key", tmp_path)
    assert set(found.looks.values()) == {looks}


def test_what_it_learnt_is_there_the_next_time(bundle, monkeypatch):
    """Costs and the share of accepted drafts of a use are what the next one begins with."""
    monkeypatch.setattr(module, "ENOUGH_MS", 400.0)  # three looks at load

    first = load(bundle)
    for _ in range(40):  # drafts are wrong, and take twice their time
        first.observe(Outcome(1, 0, 2 * DRAFT_S, CALL_S + 2 * TOKEN_S, 2))
    for _ in range(40):  # a machine that got hot, which the next time it need not be
        first.observe(Outcome(0, 0, 0.0, 2 * (CALL_S + TOKEN_S), 1))
    module.remember(first)
    second = load(bundle)
    assert second.acceptance[0] == pytest.approx(max(0.1, first.next_prior()))
    assert first.next_prior() < 0.4
    assert second.costs.drafts(1) / second.costs.verify(2) > 1.6 * DRAFT_S / (CALL_S + 2 * TOKEN_S)
    assert second.costs.verify(1) < 1.5 * (CALL_S + TOKEN_S)
    # All of the decodes, but for the first after drafts; there was one draft in each round, that
    # is, none but the first; and each use without a look counts.
    found = module._read(next(module.user_cache("costs").iterdir()), [1, 2, 4, 8])
    assert [found.looks[width] for width in (0, 1, 2, 4)] == [FADED * 3, 42, 43, FADED * 3]
    assert found.draft == pytest.approx(1000 * DRAFT_S)
    assert found.first == pytest.approx(1.0, rel=0.2)
    module.remember(FixedDraftLength(3))  # has learnt nothing
    assert load(bundle).costs.drafts(1) == second.costs.drafts(1)


def test_what_drafts_gained_is_there_the_next_time(bundle):
    first = load(bundle)
    for _ in range(40):
        first.observe(Outcome(3, 3, 3 * DRAFT_S, CALL_S + 4 * TOKEN_S, 4))
    module.remember(first)
    assert load(bundle).next_gain() == pytest.approx(first.next_gain())
    assert first.next_gain() > 0.03


def test_what_it_learnt_of_a_width_that_was_not_measured_is_there_too(bundle):
    backend = SleepingBackend()
    backend.verify_widths = tuple(range(1, 9))
    first = load(bundle, backend)
    for num_drafts in (2, 1) * 100:  # three tokens are as cheap as two
        for _ in range(2):  # learnt from together
            drafts_s = num_drafts * DRAFT_S
            outcome = Outcome(num_drafts, 1, drafts_s, CALL_S + 2 * TOKEN_S, num_drafts + 1)
            first.observe(outcome)
    assert first.costs.verify(3) == pytest.approx(first.costs.verify(2), rel=0.03)
    module.remember(first)
    again = load(bundle, backend)
    assert again.costs.verify(3) == pytest.approx(again.costs.verify(2), rel=0.03)


@pytest.mark.parametrize("share", [-0.1, 1.5, "nan", [1]])
def test_an_absurd_share_of_accepted_drafts_is_measured_again(tmp_path, clock, share):
    backend = SleepingBackend()
    found = device_costs(backend, "key", tmp_path)
    path = next(tmp_path.iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"acceptance": share}))
    calls = dict(backend.num_calls)
    clock.now_s = 0.0  # differences of times are exactly those of before
    assert device_costs(backend, "key", tmp_path) == found
    assert backend.num_calls != calls
