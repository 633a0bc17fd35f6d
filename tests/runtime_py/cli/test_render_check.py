"""The verdict of a check: few lines, what matters first, and what to do next."""

import dataclasses

import pytest

from runtime_py.bundle.bundle import Bundle
from runtime_py.check.replay import CheckReport, Comparison, Difference
from runtime_py.cli.render_check import VERDICT_LINES, next_command, print_check, verdict
from tests.runtime_py.bundles import write_fake_bundle

EQUAL = Comparison(24, 24, 2, ())
FAITHFUL = CheckReport(
    original=EQUAL,
    speculative=EQUAL,
    agreement=1.0,
    num_ties=0,
    logit_error=1e-6,
    acceptance=(0.8, 0.6, 0.5),
    original_acceptance=(0.8, 0.6, 0.5),
    accepted_per_round=1.9,
    draft_length=3,
    round_cost=1.7,
)


def report(**changed) -> CheckReport:
    return dataclasses.replace(FAITHFUL, **changed)


def shares(share: float) -> CheckReport:
    return report(acceptance=(share,) * 3, original_acceptance=(share,) * 3)


@pytest.fixture
def bundle(tmp_path):
    return Bundle.open(write_fake_bundle(tmp_path / "bundle"))


def test_the_verdict_begins_with_what_matters():
    assert verdict(FAITHFUL, "tiny on litert", "int8") == [
        "passed: tiny on litert says what the original says",
        "Agreement with the original: 100.0% of tokens; first difference: none",
        "Speculative = plain decoding: 24 of 24 tokens; first difference: none",
        "MTP pays here: a round of 3 drafts makes 2.90 tokens and costs as much as 1.70 plain "
        "decodes",
    ]


def test_a_lossy_recipe_keeps_its_promise_and_says_where_the_text_differs():
    differs = Comparison(20, 24, 1, (Difference(1, 8, 0.25),))
    head, agreement, *_ = verdict(report(original=differs, num_ties=2), "tiny", "int4")
    assert head == "passed: tiny is as close to the original as recipe int4 promises"
    assert "(2 near ties not counted); first difference: prompt 1, token 8" in agreement


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (None, "MTP pays where a round costs less than 2.90 plain decodes"),
        (1.7, "MTP pays here"),
        (9.0, "MTP with 3 drafts does not pay here"),
    ],
)
def test_the_verdict_says_whether_drafting_pays(cost, said):
    assert verdict(report(round_cost=cost), "tiny", "int8")[3].startswith(said)


def test_a_bundle_without_drafter_says_so():
    plain = report(draft_length=0, acceptance=(), original_acceptance=())
    assert verdict(plain, "tiny", "int8")[3:] == ["MTP: the bundle has no drafter"]


@pytest.mark.parametrize(
    ("share", "warning"),
    [(0.0, "does not predict this model"), (0.05, "other prompts"), (0.8, None)],
)
def test_a_drafter_for_another_model_is_warned_of_loudly(share, warning):
    """Its original is as bad, so that the check passes: nothing else would show it."""
    warnings = verdict(shares(share), "tiny", "int8")[4:]
    assert [warning in line for line in warnings] == ([] if warning is None else [True])
    assert not any("wired" in line for line in warnings)


@pytest.mark.parametrize("failures", [(), ("logits",), tuple("abcde")])
@pytest.mark.parametrize("verbose", [False, True])
def test_it_is_at_most_six_lines_and_ends_with_what_to_do(failures, verbose, bundle, capsys):
    found = dataclasses.replace(shares(0.0), failures=failures)
    print_check(found, bundle, "litert", verbose)
    text = capsys.readouterr().out
    assert ("largest logit difference" in text) == verbose
    lines = text.rstrip().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(("passed:", "FAILED:")))
    assert len(lines[start:]) <= VERDICT_LINES + 1
    assert verbose or start == 0
    if failures:
        assert "largest logit difference" in text or lines[-1].endswith("--verbose")
    else:
        assert lines[-1] == f"Next: {next_command(bundle.folder, bundle.manifest)}"


def test_the_table_tells_of_every_difference(bundle, capsys):
    differences = (Difference(0, 3, 0.5), Difference(1, 8, 0.25))
    print_check(report(original=Comparison(11, 24, 0, differences)), bundle, "litert", True)
    text = " ".join(capsys.readouterr().out.split())
    assert "prompt 0, token 3" in text
    assert "1 more" in text


def test_the_next_command_names_a_runtime_where_there_is_a_choice(bundle):
    manifest = bundle.manifest
    two = manifest.model_copy(update={"runtimes": dict.fromkeys(("litert", "onnx"))})
    assert " --runtime" not in next_command(bundle.folder, manifest, "litert")
    assert " --runtime onnx " in next_command(bundle.folder, two, "onnx")
    tokens = manifest.tokens.model_copy(update={"chat_template": None})
    raw = manifest.model_copy(update={"tokens": tokens})
    assert " --raw " in next_command(bundle.folder, raw)
