"""gemma-run on a real bundle, as a user meets it; and what it says to bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import closing

import pytest

import runtime_py
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import file_entry
from runtime_py.formats.litertlm import find_model, read_sections
from tests.end_to_end.conftest import ROOT, LoadedBundle, run


@pytest.fixture(scope="session")
def bundle(export_tiny):
    return export_tiny("int8")


@pytest.fixture(scope="session")
def num_recorded(bundle) -> int:
    """Tokens of the original."""
    return Bundle.open(bundle).reference().greedy_ids.size


@pytest.fixture
def on(runtime):
    """The option that chooses the runtime."""
    return "--runtime", runtime


@pytest.fixture
def model_name(runtime):
    """The file that the runtime loads."""
    names = {"litert": "model.litertlm", "executorch": "model.pte", "onnx": "model.fill.onnx"}
    return names[runtime]


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle that a test may spoil."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def change_manifest(folder, change):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def replace_file(folder, name, content):
    (folder / name).write_bytes(content)
    entry = file_entry(folder / name).model_dump()
    change_manifest(folder, lambda values: values["files"].update({name: entry}))


def failed(*arguments, **options):
    """The one line of a command that must fail with exit code 1."""
    done = run("gemma-run", *arguments, **options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("gemma-run: error: ")
    return lines[0]


def test_generate_streams_text_and_sums_up(bundle, on):
    options = ("--raw", "--prompt", "The module", "--max-new-tokens", 24, "--draft-length", 3)
    done = run("gemma-run", "generate", bundle, *on, *options)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 20
    assert "24 tokens" in done.stderr
    assert "tokens/s" in done.stderr
    assert "drafts accepted per round" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_generate_json_is_one_object_and_nothing_else(bundle):
    done = run("gemma-run", "generate", bundle, "--prompt", "hello", "--json", "--seed", 3)
    answer = json.loads(done.stdout)
    assert answer["draft_length"] == "auto"
    assert answer["num_target_calls"] <= len(answer["token_ids"])
    assert done.stderr == ""


def test_the_same_seed_says_the_same_with_and_without_the_drafter(bundle, on):
    common = ("--prompt", "Explain lists", "--temperature", 1.2, "--max-new-tokens", 40, "--json")
    answers = [
        json.loads(run("gemma-run", "generate", bundle, *on, *common, *more).stdout)["text"]
        for more in (
            ("--seed", 1, "--draft-length", 0),
            ("--seed", 1, "--draft-length", 7),
            ("--seed", 2, "--draft-length", 3),
        )
    ]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--temperature", ("0", "1.3")),
        ("--top-k", ("1", "0")),
        ("--top-p", ("0.05", "1")),
        ("--max-new-tokens", ("5", "9")),
    ],
)
def test_every_sampling_option_changes_the_output(bundle, option, values):
    base = {"--temperature": "1.3", "--top-k": "0", "--top-p": "1", "--max-new-tokens": "16"}
    texts = set()
    for value in values:
        options = {**base, option: value}
        flat = [item for pair in options.items() for item in pair]
        done = run("gemma-run", "generate", bundle, "--prompt", "Explain", "--json", *flat)
        texts.add(json.loads(done.stdout)["text"])
    assert len(texts) == 2


def test_the_provider_of_onnxruntime_can_be_named(bundle):
    named = ("--runtime", "onnx", "--provider", "CPUExecutionProvider")
    done = run("gemma-run", "generate", bundle, *named, "--prompt", "hi", "--max-new-tokens", 4)
    assert done.returncode == 0, done.stderr


def test_a_prompt_from_stdin(bundle):
    options = ("--max-new-tokens", 8, "--json")
    piped = run("gemma-run", "generate", bundle, "--prompt", "-", *options, input="Explain lists")
    typed = run("gemma-run", "generate", bundle, "--prompt", "Explain lists", *options)
    assert json.loads(piped.stdout)["text"] == json.loads(typed.stdout)["text"]


def test_chat_keeps_the_conversation_until_reset(bundle):
    said = "Explain lists\nmore\n/reset\nExplain lists\n/quit\n"
    done = run("gemma-run", "chat", bundle, "--max-new-tokens", 12, input=said)
    assert done.returncode == 0, done.stderr
    summaries = [line for line in done.stderr.splitlines() if "prompt tokens" in line]
    counts = [int(line.split()[0].lstrip("[")) for line in summaries]
    assert len(counts) == 3
    assert counts[1] > counts[0] == counts[2]


def test_check_passes_and_says_so(bundle, on, num_recorded):
    done = run("gemma-run", "check", bundle, *on)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{num_recorded} of {num_recorded} tokens" in done.stdout
    assert "passed:" in done.stdout
    assert f"gemma4-tiny on {on[1]}" in done.stdout


def test_check_says_the_same_as_json(bundle, num_recorded):
    report = json.loads(run("gemma-run", "check", bundle, "--json").stdout)
    assert report["passed"] is True
    assert report["speculative"]["num_equal"] == num_recorded


def test_bench_compares_draft_lengths(bundle, on, tmp_path):
    options = (*on, "--repeats", 1, "--max-new-tokens", 16)
    done = run("gemma-run", "bench", bundle, *options, "--json")
    found = json.loads(done.stdout)
    rows = found["rows"]
    official = ["official", "official, MTP"] if "litert" in on else []
    ours = ["K = 0", "K = 1", "K = 3", "K = 7", "K = auto"]
    assert [row["who"] for row in rows] == [*ours, *official]
    assert rows[0]["speedup"] == 1
    assert all(row["tokens_per_s"] > 0 for row in rows)
    assert found["advice"].startswith("Use --draft-length ")
    chosen = ("--draft-length", "auto", "--html", tmp_path / "report.html")
    shown = run("gemma-run", "bench", bundle, *options, *chosen).stdout
    assert "Use --draft-length " in shown
    assert "K = auto" in shown
    assert "K = 3" not in shown
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_no_torch_enters_a_process_that_generates(bundle, on):
    program = f"""
import sys
from runtime_py.cli.commands import main
arguments = ["generate", {str(bundle)!r}, "--prompt", "hi", "--max-new-tokens", "4", *{on!r}]
main(arguments, standalone_mode=False)
heavy = {{"torch", "transformers", "litert_torch", "jax", "exporter", "executorch", "safetensors"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert "libtorch" not in open("/proc/self/maps").read()
print("clean")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("clean\n"), done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md"])
def test_the_python_of_the_pages_runs(bundle, tmp_path, page):
    (tmp_path / "gemma4-tiny-raspberry-pi").symlink_to(bundle)
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ours = "\n".join(block for block in blocks if "litert_lm" not in block)
    done = subprocess.run(
        [sys.executable, "-c", ours],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 20


def test_the_python_api_says_what_the_command_says(bundle, on):
    asked = ("--prompt", "Explain lists", "--temperature", 0.9, "--seed", 5, "--max-new-tokens", 24)
    done = run("gemma-run", "generate", bundle, *on, *asked, "--json")
    with runtime_py.load(bundle, runtime=on[1], draft_length=0) as model:
        options = {"temperature": 0.9, "seed": 5, "max_new_tokens": 24}
        result = model.generate("Explain lists", **options)
    assert json.loads(done.stdout)["text"] == result.text


def test_two_sessions_of_one_machine_do_not_see_each_other(float32, export_tiny, runtime):
    """A second backend over the same file has its own KV."""
    first, second = (ids.tolist() for ids in float32.reference.prompt_ids[:2])
    expected = float32.generate(first, 3)
    with closing(LoadedBundle(export_tiny("float32"), runtime)) as other:
        steps = float32.session.generate(first, *_greedy(64), 3)
        tokens = list(next(steps).token_ids)
        assert len(other.generate(second, 3)) == 64
        tokens += [token_id for step in steps for token_id in step.token_ids]
    assert tokens == expected


def _greedy(num_tokens):
    from runtime_py.decoding.sampling import GREEDY
    from runtime_py.decoding.session import Stops

    return GREEDY, Stops(max_new_tokens=num_tokens)


def test_a_drafter_that_lost_its_weights_fails_the_check_loudly(copy, num_recorded):
    """It still says the right tokens, only slower: nothing but the acceptance shows it."""
    path = copy / "model.litertlm"
    drafter = find_model(read_sections(path), "tf_lite_mtp_drafter")
    content = bytearray(path.read_bytes())
    content[drafter.end - drafter.size_bytes // 2 : drafter.end] = bytes(drafter.size_bytes // 2)
    replace_file(copy, "model.litertlm", bytes(content))
    done = run("gemma-run", "check", copy)
    assert done.returncode == 1
    assert "FAILED: the drafter is broken or mis-wired" in done.stdout
    assert f"{num_recorded} of {num_recorded} tokens" in done.stdout


class TestBadBundles:
    def test_no_such_bundle(self, tmp_path):
        assert "no such bundle folder" in failed("check", tmp_path / "nowhere")

    def test_truncated(self, copy, on, model_name):
        path = copy / model_name
        path.write_bytes(path.read_bytes()[:-100])
        assert "truncated or altered" in failed("generate", copy, *on, "--prompt", "hi")

    def test_wrong_checksum(self, copy, on, model_name):
        path = copy / model_name
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
        assert f"{model_name}: sha256" in failed("check", copy, *on)

    def test_newer_format(self, copy):
        change_manifest(copy, lambda values: values.update(format_version=2))
        assert "manifest format 2, this runtime reads 1" in failed("check", copy)

    def test_a_path_that_leaves_the_bundle(self, copy):
        change_manifest(
            copy, lambda values: values["runtimes"]["litert"].update(model="../../etc/passwd")
        )
        assert "leaves the bundle" in failed("check", copy)

    def test_a_model_file_that_is_none(self, copy, on, model_name):
        replace_file(copy, model_name, b"\0" * 5000)
        assert model_name in failed("generate", copy, *on, "--prompt", "hi")

    def test_a_model_file_cut_short_whose_manifest_agrees(self, copy, on, model_name):
        whole = (copy / model_name).read_bytes()
        replace_file(copy, model_name, whole[: len(whole) // 2])
        assert model_name in failed("generate", copy, *on, "--prompt", "hi")

    def test_weights_cut_short_whose_manifest_agrees(self, copy):
        """The graphs of ONNX name the places of their weights in a second file."""
        whole = (copy / "model.data").read_bytes()
        replace_file(copy, "model.data", whole[: len(whole) // 2])
        assert "model." in failed("generate", copy, "--runtime", "onnx", "--prompt", "hi")

    def test_a_runtime_that_is_not_in_it(self, copy, on):
        wanted = on[1]
        other = "executorch" if wanted == "litert" else "litert"
        change_manifest(
            copy, lambda values: values.update(runtimes={other: values["runtimes"][other]})
        )
        said = failed("generate", copy, *on, "--prompt", "hi")
        assert f"made for {other}; cannot be run with {wanted}" in said
        assert f"export with --runtime {wanted}" in said


class TestBadRequests:
    def test_a_provider_that_the_runtime_has_not(self, bundle, on):
        said = failed("generate", bundle, *on, "--provider", "TeapotExecutionProvider",
                      "--prompt", "hi")  # fmt: skip
        if on[1] == "onnx":
            assert "TeapotExecutionProvider is not in this build of onnxruntime" in said
        else:
            assert "only onnxruntime has execution providers; leave --provider out" in said

    def test_empty_prompt(self, bundle):
        assert "the prompt is empty" in failed("generate", bundle, "--prompt", "")

    def test_a_prompt_longer_than_the_context(self, bundle):
        said = failed("generate", bundle, "--prompt", "words and " * 600)
        assert "the context holds 512" in said

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--temperature", -1), "temperature is -1.0"),
            (("--temperature", "nan"), "temperature is nan"),
            (("--top-k", -3), "top-k is -3"),
            (("--top-p", 0), "top-p is 0.0"),
            (("--seed", -1), "seed is -1"),
            (("--draft-length", 9), "draft length is 9; this bundle allows 0 .. 7"),
        ],
    )
    def test_values_out_of_range(self, bundle, options, said):
        assert said in failed("generate", bundle, "--prompt", "hi", *options)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("generate",), "Missing argument 'BUNDLE'"),
            (("generate", "x"), "Missing option '--prompt'"),
            (("generate", "x", "--prompt", "hi", "--threads", 0), "--threads"),
            (("generate", "x", "--prompt", "hi", "--temperature", "warm"), "not a valid float"),
            (("check", "x", "--runtime", "tpu"), "'tpu' is not"),
            (("sing", "x"), "No such command"),
        ],
    )
    def test_wrong_usage_is_exit_code_2(self, arguments, said):
        done = run("gemma-run", *arguments)
        assert done.returncode == 2
        assert said in done.stderr
