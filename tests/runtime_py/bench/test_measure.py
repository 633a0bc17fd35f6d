"""The contest of draft lengths on a scripted bundle: figures, table, charts and report."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from runtime_py.backends import SessionOptions
from runtime_py.backends.load import BACKENDS
from runtime_py.bench import bundle as module
from runtime_py.bench.bundle import bench_bundle, policies
from runtime_py.bench.charts import LEFT, WIDTH, stacked_bars, steps
from runtime_py.bench.interval import LEVEL, MIN_TURNS, median_interval
from runtime_py.bench.measure import Contest, Effort, Length, Run
from runtime_py.bench.report import write_report
from runtime_py.bench.rows import acceptance_by_position, advice, bench_rows
from runtime_py.bundle.bundle import Bundle
from runtime_py.cli.commands import main
from runtime_py.cli.render_bench import print_bench
from runtime_py.decoding.session import Step
from runtime_py.draft_length import measure as device_costs
from runtime_py.draft_length.costs import Known
from runtime_py.errors import RunError
from tests.runtime_py.bundles import VOCAB_SIZE, write_fake_bundle
from tests.runtime_py.scripted_backend import ScriptedBackend

EFFORT = Effort(max_new_tokens=12, num_repeats=2, num_prompts=2)
OPTIONS = SessionOptions(1)


def run_of(seconds: float, *rounds: tuple[int, int]) -> Run:
    """A run with one step for each (drafts, accepted)."""
    made = tuple(Step((0,) * (accepted + 1), drafts, accepted) for drafts, accepted in rounds)
    return Run(
        steps=made,
        seconds=seconds,
        prefill_s=0.5,
        stage_s={"prefill": 0.5, "draft": 0.1, "verify 4": 0.2, "decode": 0.1},
        stage_calls={"prefill": 1, "draft": 10, "verify 4": 4, "decode": 1},
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A contest on a bundle whose graphs are scripted."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        scripted = ScriptedBackend(vocab_size=VOCAB_SIZE, skill=0.8)
        patch.setitem(BACKENDS, "litert", lambda *_: scripted)
        patch.setattr(device_costs, "user_cache", lambda part: folder / part)
        patch.setattr(module.official, "can_run", lambda _: False)
        # What is measured would draft before anything is committed.
        known = Known(round_s=[1.0 + 0.1 * n for n in range(8)], draft_s=0.1, acceptance=0.8)
        patch.setattr(device_costs, "measure", lambda *_: known)
        bundle = Bundle.open(write_fake_bundle(folder / "bundle"))
        done: list[int] = []
        contest = bench_bundle(bundle, "litert", OPTIONS, (), EFFORT, done.append)
    assert done == [1, 2, 3, 4]
    return bundle, contest


def test_all_lengths_and_auto_take_part(found):
    _, contest = found
    assert list(contest.runs) == [0, 1, 3, 7, "auto"]
    assert all(len(runs) == 4 for runs in contest.runs.values())
    assert all(run.num_tokens == 12 for runs in contest.runs.values() for run in runs)
    assert sum(run.num_rounds for run in contest.runs["auto"]) > 0


def test_only_the_lengths_that_were_asked_for():
    backend = ScriptedBackend()
    asked = policies(backend, (3, "auto", 3), lambda: "a new policy")
    assert list(asked) == [0, 3, "auto"]
    assert [asked[0](), asked[3](), asked["auto"]()] == [0, 3, "a new policy"]
    backend.has_drafter = False
    assert list(policies(backend, (3, "auto"), lambda: None)) == [0]


def test_rows_add_up():
    runs = [run_of(1.0, (0, 0), (3, 3), (3, 1)), run_of(2.0, (3, 0), (3, 2), (1, 1))]
    once = [run_of(3.5, *[(0, 0)] * 7)]
    plain, row = bench_rows(Contest({0: 2 * once, 3: runs}, {}))
    assert plain["tokens_per_s"] == 2
    assert row["all_tokens_per_s"] == [7, 3]
    assert row["tokens_per_s"] == 5
    assert row["speedup"] == 2.5
    assert row["drafted_per_round"] == 13 / 5
    assert row["accepted_per_round"] == 7 / 5
    assert row["accepted_rounds"] == [1, 2, 1, 1]
    assert row["stage_ms"]["verify 4"] == pytest.approx(50)
    spent = row["ms_per_token"]
    assert sum(spent.values()) == pytest.approx(1000 * 3.0 / 13)
    assert spent["draft"] == pytest.approx(1000 * 0.2 / 13)


def test_acceptance_by_position_counts_what_was_judged():
    runs = [run_of(1.0, (0, 0), (3, 3), (3, 1), (3, 0), (1, 1))]
    assert acceptance_by_position(runs) == [3 / 4, 1 / 2, 1]
    assert acceptance_by_position([run_of(1.0, (0, 0))]) == []


def rows_of(speeds: Mapping[Length, Sequence[float]]) -> list[dict[str, Any]]:
    """Rows of candidates with these speeds, turn by turn."""
    step = Step((0,), 0, 0)
    return bench_rows(
        Contest(
            {
                length: [Run(steps=(step,), seconds=1 / one, prefill_s=0.0) for one in many]
                for length, many in speeds.items()
            },
            {},
        )
    )


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        (
            {0: 10, 3: 20, "auto": 20},
            "Use --draft-length auto, the default: 1.96 x plain decoding (99% interval 1.90 to "
            "2.19); no measurable difference: 3 and auto",
        ),
        (
            {0: 10, 3: 20, "auto": 12},
            "Use --draft-length 3: 2.04 x plain decoding (99% interval 1.87 to 2.12); auto is "
            "slower: 1.18 x",
        ),
        (
            {0: 10, 1: 10.2, 3: 5, "auto": 9.9},
            "Use --draft-length auto, the default; no measurable difference: 0, 1 and auto",
        ),
        (
            {0: 10, 3: 8, "auto": 7},
            "Use --draft-length 0, plain decoding; auto is slower: 0.69 x",
        ),
        ({0: 10, 3: 5}, "Use --draft-length 0, plain decoding"),
        (
            {0: 10, 3: 10.1},
            "Use --draft-length 0, plain decoding; no measurable difference: 0 and 3",
        ),
    ],
)
def test_the_advice_says_what_to_use_and_claims_nothing_within_the_noise(speeds, said):
    noise = [0.96, 1.02, 1.05, 0.98, 1.0] * 4
    turned = {length: noise[index:] + noise[:index] for index, length in enumerate(speeds)}
    many = {length: [speed * n for n in turned[length]] for length, speed in speeds.items()}
    assert advice(rows_of(many)) == said


def test_few_runs_prove_nothing():
    found = rows_of({0: [10.0] * 4, 3: [20.0] * 4, "auto": [15.0] * 4})
    assert advice(found) == (
        "Use --draft-length auto, the default; no measurable difference: 0, 3 and auto; too few "
        "runs to tell, raise --repeats"
    )
    assert [row["speedup_interval"] for row in found] == [None] * 3


def test_noise_is_hardly_ever_taken_for_a_difference():
    """Five equal candidates, 20 turns each, in 300 contests."""
    random = Random(7)
    lengths: tuple[Length, ...] = (0, 1, 3, 7, "auto")
    claims = 0
    for _ in range(300):
        found = {length: [random.lognormvariate(3, 0.2) for _ in range(20)] for length in lengths}
        claims += not advice(rows_of(found)).endswith("0, 1, 3, 7 and auto")
    assert claims <= 15  # 5 %


@pytest.mark.parametrize("number", [0, 7, 8, 20, 21, 100])
def test_an_interval_is_as_narrow_as_its_confidence_allows(number):
    found = median_interval(range(number))
    assert MIN_TURNS == 8
    if number < MIN_TURNS:  # the smallest and the largest are not sure enough
        assert found is None
        return
    low, high = found
    assert low + high == number - 1  # as many left out below as above
    for left_out, sure in ((low, True), (low + 1, False)):
        assert (1 - 2 * binom.cdf(left_out, number, 0.5) >= LEVEL) == sure


def test_the_table_shows_all_and_ends_with_the_advice(found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    bundle, contest = found
    rows = bench_rows(contest)
    print_bench(rows, bundle, "litert")
    shown = capsys.readouterr().out
    assert all(row["who"] in shown for row in rows)
    assert shown.strip().endswith(advice(rows))


class Page(HTMLParser):
    """Tags and attributes; complains about tags that are not closed."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_file_that_needs_nothing_else(found, tmp_path):
    bundle, contest = found
    write_report(tmp_path / "report.html", bundle, "litert", (OPTIONS, EFFORT), contest)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags} >= {"svg", "rect", "path", "table"}
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any(key in ("href", "src", "xlink:href") for _, a in page.tags for key in a)
    assert "http" not in text
    assert "url(" not in text
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ) in page.tags
    assert not any("width" in attributes for tag, attributes in page.tags if tag == "svg")
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings == [
        "Tokens per second",
        "Where the time of a token goes",
        "Acceptance by position",
        "Accepted drafts per round",
        "K over time",
    ]
    assert advice(bench_rows(contest)) in text


def test_no_name_in_a_report_is_markup(found, tmp_path):
    bundle, contest = found
    evil = "</title><script>alert(1)</script>"
    entry = bundle.entry("litert").model_copy(update={"recipe": evil})
    update = {"name": evil, "runtimes": {"litert": entry}}
    renamed = replace(bundle, manifest=bundle.manifest.model_copy(update=update))
    others = Contest({0: contest.runs[0]}, {evil: [3.0, 4.0] * 2})
    write_report(tmp_path / "report.html", renamed, "litert", (OPTIONS, EFFORT), others)
    text = (tmp_path / "report.html").read_text()
    assert "script" not in {tag for tag, _ in Page(text).tags}
    assert text.count("&lt;script&gt;") >= 4  # title, heading, recipe, and the charts


def test_the_report_of_a_bundle_without_drafter(found, tmp_path):
    bundle, contest = found
    plain = Contest({0: contest.runs[0]}, {"official": [3.0, 4.0] * 2})
    write_report(tmp_path / "report.html", bundle, "litert", (OPTIONS, EFFORT), plain)
    text = (tmp_path / "report.html").read_text()
    assert "official" in text
    assert "K over time" not in text


def test_a_report_that_cannot_be_written_is_one_line(found, tmp_path):
    bundle, contest = found
    path = tmp_path / "nowhere" / "report.html"
    with pytest.raises(RunError, match=r"report.html: No such file.*; name a file in a folder"):
        write_report(path, bundle, "litert", (OPTIONS, EFFORT), contest)


numbers = st.floats(0, 1e9, allow_subnormal=False)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.dictionaries(st.text(max_size=9), numbers)))
def test_bars_of_any_numbers_stay_inside_the_picture(bars):
    page = Page(stacked_bars(bars, "ms <&>"))
    for tag, attributes in page.tags:
        if tag == "rect":
            left, width = float(attributes["x"]), float(attributes["width"])
            assert width >= -0.11
            assert LEFT - 0.1 <= left <= left + width + 0.2 <= WIDTH


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.lists(st.integers(0, 63), max_size=40)))
def test_steps_of_any_numbers_are_drawn(lines):
    page = Page(steps(lines, "token", "K"))
    assert sum(a.get("class") == "line" for _, a in page.tags) == len(lines)


@pytest.mark.parametrize("name", ["none/report.html", "x" * 5000, "folder"])
def test_a_place_for_no_report_is_refused_before_anything_is_measured(tmp_path, name):
    (tmp_path / "folder").mkdir()
    result = CliRunner().invoke(main, ["bench", "no bundle", "--html", str(tmp_path / name)])
    assert result.exit_code == (2 if name == "folder" else 1)
    assert "no bundle" not in result.stderr


def test_a_place_for_a_report_is_left_as_it_was(tmp_path):
    (tmp_path / "old.html").write_text("old")
    for name in ("old.html", "new.html"):
        CliRunner().invoke(main, ["bench", "no bundle", "--html", str(tmp_path / name)])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
