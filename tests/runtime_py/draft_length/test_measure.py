"""What rounds cost on this device: measured at the first load, kept in the user's cache."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime_py.backends import SessionOptions
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.policy import FixedDraftLength, Outcome
from runtime_py.device import caches
from runtime_py.draft_length import measure as module
from runtime_py.draft_length.measure import MAX_AGE_S, auto_draft_length, measure, remember
from runtime_py.draft_length.policy import AutoDraftLength
from tests.runtime_py.bundles import VOCAB_SIZE, write_fake_bundle
from tests.runtime_py.scripted_backend import ScriptedBackend

DRAFT_S, CALL_S, TOKEN_S = 0.002, 0.004, 0.002
WIDTHS = [1, 2, 4, 8]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Only the backend makes time pass."""
    clock = SimpleNamespace(now_s=0.0)
    times = SimpleNamespace(perf_counter=lambda: clock.now_s, time=lambda: clock.now_s)
    monkeypatch.setattr(module, "time", times)
    monkeypatch.setattr(SleepingBackend, "clock", clock, raising=False)
    return clock


class SleepingBackend(ScriptedBackend):
    """Takes its time, and says nothing worth reading."""

    clock: SimpleNamespace

    def __init__(self, **options) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, **options)

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


def round_s(num_drafts: int, width: int) -> float:
    return num_drafts * DRAFT_S + CALL_S + TOKEN_S * width


def test_a_round_costs_its_drafts_and_its_graph():
    """A graph costs what its width costs, however many of its tokens are padding."""
    found = measure(SleepingBackend(), WIDTHS, 0.5)
    wanted = [round_s(n, width) for n, width in enumerate((1, 2, 4, 4, 8, 8, 8, 8))]
    assert found.round_s == pytest.approx(wanted)
    assert found.draft_s == pytest.approx(DRAFT_S)
    assert found.acceptance == 0.5


def test_a_width_between_measured_ones_is_not_run():
    called = set()

    class Noting(SleepingBackend):
        def verify(self, token_ids, position):
            called.add(len(token_ids))
            super().verify(token_ids, position)

    found = measure(Noting(), list(range(1, 8)), 0.5)
    assert called == {1, 2, 4, 7}
    assert found.round_s == pytest.approx([round_s(n, n + 1) for n in range(7)])


def test_a_call_costs_what_it_costs_after_its_like():
    """Every call of another kind than the one before takes 1 ms more."""

    class Caching(SleepingBackend):
        last = ""

        def verify(self, token_ids, position):
            self.clock.now_s += 0.001 * (self.last != "verify")
            self.last = "verify"
            super().verify(token_ids, position)

        def draft(self, token_id, hidden, position):
            self.clock.now_s += 0.001 * (self.last != "draft")
            self.last = "draft"
            super().draft(token_id, hidden, position)

    found = measure(Caching(), WIDTHS, 0.5)
    assert found.round_s[0] == pytest.approx(round_s(0, 1))
    assert found.round_s[3] == pytest.approx(round_s(3, 4) + 0.002)  # its first draft, its verify


@pytest.mark.parametrize(("enough_s", "right"), [(module.ENOUGH_S, True), (0.0, False)])
def test_another_program_in_the_first_round_does_not_count(monkeypatch, clock, enough_s, right):
    """Where calls are quick; a large model has no time for a second one."""
    monkeypatch.setattr(module, "ENOUGH_S", enough_s)

    class Interrupted(SleepingBackend):
        def draft(self, *_):
            self.num_calls["draft"] += 1
            first = 6 < self.num_calls["draft"] <= 12  # after the warm-up
            clock.now_s += 3e-4 if first else 1e-5

        def verify(self, *_):
            clock.now_s += 1e-4

    assert (measure(Interrupted(), WIDTHS, 0.5).draft_s < 2e-5) == right


def test_a_large_model_runs_every_call_twice():
    backend = SleepingBackend()
    measure(backend, WIDTHS, 0.5)
    assert backend.num_calls == {"prefill": 0, "verify": 2 * 5, "draft": 2 * 6}


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Bundle:
    monkeypatch.setattr(module, "user_cache", lambda part: tmp_path / "cache" / part)
    return Bundle.open(write_fake_bundle(tmp_path / "bundle"))


def load(bundle: Bundle, backend: SleepingBackend | None = None) -> AutoDraftLength:
    """What a use of the bundle begins with."""
    policy = auto_draft_length(bundle, "litert", backend or SleepingBackend(), SessionOptions(1))
    assert isinstance(policy, AutoDraftLength)
    return policy


def kept(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "costs").iterdir()
    return path


def test_is_measured_at_the_first_load_and_read_at_the_next(bundle, tmp_path):
    load(bundle)
    assert kept(tmp_path).suffix == ".json"
    again = SleepingBackend()
    assert load(bundle, again).costs[7] == pytest.approx(round_s(7, 8))
    assert again.num_calls["verify"] == 0


def test_each_thread_count_has_costs_of_its_own(bundle, tmp_path):
    for threads in (1, 2, 1):
        auto_draft_length(bundle, "litert", SleepingBackend(), SessionOptions(threads))
    assert len(list((tmp_path / "cache" / "costs").iterdir())) == 2


def test_begins_with_what_the_original_drafter_accepted(bundle):
    reference = bundle.reference()
    right = tried = 0
    for text, rounds in zip(reference.greedy_ids, reference.draft_ids, strict=True):
        for start, drafts in enumerate(rounds):
            for position, draft in enumerate(drafts):
                tried += 1
                if draft != text[start + 1 + position]:
                    break
                right += 1
    assert load(bundle).acceptance.shares == pytest.approx([right / tried] * 7)


def test_without_a_drafter_or_a_second_width_nothing_is_measured(bundle):
    drafterless, narrow = SleepingBackend(), SleepingBackend(cache_length=1)
    drafterless.has_drafter = False
    for backend in (drafterless, narrow):
        policy = auto_draft_length(bundle, "litert", backend, SessionOptions(1))
        assert isinstance(policy, FixedDraftLength)
        assert backend.num_calls["verify"] == 0


def test_widths_past_the_context_are_left_out(bundle):
    assert len(load(bundle, SleepingBackend(cache_length=7)).acceptance.shares) == 3


def test_what_a_use_learnt_is_what_the_next_one_begins_with(bundle, tmp_path):
    first = load(bundle)
    for length in (0, 3, 0, 3) * 40:
        for _ in range(10):
            first.observe(
                Outcome(length, 0, 2 * length * DRAFT_S, round_s(0, length + 1), length + 1)
            )
    ratio = first.costs[3] / first.costs[0]
    assert ratio > 1.2 * round_s(3, 4) / round_s(0, 1)
    remember(first)
    again = load(bundle)
    assert again.costs[3] / again.costs[0] == pytest.approx(ratio)
    assert again.acceptance.shares[0] < 0.05
    stated = json.loads(kept(tmp_path).read_text())
    remember(FixedDraftLength(3))  # has learnt nothing
    assert json.loads(kept(tmp_path).read_text()) == stated


def test_a_day_later_it_is_measured_again(bundle, clock, tmp_path):
    """A length measured too expensive is never used, so its cost would stay wrong."""
    load(bundle)
    path = kept(tmp_path)
    wrong = json.loads(path.read_text())
    wrong["round_s"][3], wrong["acceptance"] = 1.0, 0.9
    path.write_text(json.dumps(wrong))
    clock.now_s += MAX_AGE_S - 1
    assert load(bundle).costs[3] == 1.0
    clock.now_s += 2
    again = load(bundle)
    assert again.costs[3] == pytest.approx(round_s(3, 4))
    assert again.acceptance.shares[0] == 0.9


GOOD = {"round_s": [1.0, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1], "draft_s": 0.1, "acceptance": 0.5}


def written(**values) -> bytes:
    return json.dumps(GOOD | values).encode()


def test_a_whole_cache_is_read(bundle, tmp_path):
    load(bundle)
    kept(tmp_path).write_bytes(written())
    assert load(bundle).costs[7] == 2.1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"{}",
        written(round_s=GOOD["round_s"][:-1]),
        written(round_s=[*GOOD["round_s"], 3.0]),
        written(round_s={"0": 1.0}),
        written(round_s=[float("nan")] * 8),
        written(round_s=[-1.0] * 8),
        written(draft_s=float("inf")),
        written(draft_s=5e-324),
        written(draft_s=10**400),
        written(draft_s="0.1"),
        written(acceptance=1.5),
        written(acceptance=float("nan")),
        written(acceptance=[1]),
        written(more=1),
        b'{"draft_s": 1' + b"[" * 60_000,
        b"[" * 200_000,
    ],
)
def test_a_damaged_cache_is_measured_again_and_replaced(bundle, tmp_path, content):
    load(bundle)
    kept(tmp_path).write_bytes(content)
    backend = SleepingBackend()
    assert load(bundle, backend).costs[7] == pytest.approx(round_s(7, 8))
    assert backend.num_calls["draft"]
    assert len(json.loads(kept(tmp_path).read_text())["round_s"]) == 8


def test_where_nothing_can_be_kept_it_is_measured_all_the_same(bundle, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    assert load(bundle).costs[0] > 0


@pytest.mark.skipif(os.name == "nt", reason="a user's profile is private by its access list")
def test_costs_are_neither_read_nor_kept_where_others_can_write(bundle, tmp_path):
    load(bundle)
    kept(tmp_path).write_bytes(written())
    (tmp_path / "cache" / "costs").chmod(0o777)
    assert caches.read_own(kept(tmp_path)) == b""
    assert load(bundle).costs[7] == pytest.approx(round_s(7, 8))
    assert kept(tmp_path).read_bytes() == written()
