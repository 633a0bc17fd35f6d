import json

import pytest
from click.testing import CliRunner

from runtime_py.adb.bench import DeviceEffort, bench_on_device
from runtime_py.adb.connection import connect
from runtime_py.bundle.bundle import Bundle
from runtime_py.cli.commands import main
from runtime_py.errors import RunError
from tests.runtime_py.bundles import write_fake_bundle

# Prints what runtime/engine/io_types.cc of LiteRT-LM prints; MTP is the faster here.
PROGRAM = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
case "$*" in *speculative_decoding=true*) speed=30.50; ;; *) speed=20.25 ;; esac
cat "${LD_LIBRARY_PATH}/libHelp.so" >/dev/null || exit 1
echo "BenchmarkInfo:"
echo "    Decode Turn 1: Processed 64 tokens in 2.1s duration."
echo "      Decode Speed: $speed tokens/sec."
case "$*" in *decoding=true*) echo "MTP Drafter - Success rate: 0.62" >&2 ;; esac
"""
EFFORT = DeviceEffort(max_new_tokens=64, num_repeats=3, num_threads=4)


@pytest.fixture
def bundle(tmp_path):
    return Bundle.open(write_fake_bundle(tmp_path / "bundle"))


def program(folder, text=PROGRAM):
    folder.mkdir()
    (folder / "libHelp.so").write_text("a library")
    path = folder / "litert_lm_advanced_main"
    path.write_text(text)
    return path


def test_plain_and_mtp_take_turns_on_the_device(adb, bundle, tmp_path):
    heard = []
    found = bench_on_device(connect(None), bundle, program(tmp_path / "p"), EFFORT, heard.append)
    assert found.device == "Pixel 10 Pro"
    assert [run.mtp for run in found.runs] == [False, True] * 3
    assert found.tokens_per_s(mtp=False) == 20.25
    assert found.tokens_per_s(mtp=True) == 30.5
    assert {run.success_rate for run in found.runs} == {None, 0.62}
    assert heard == [1, 2, 3, 4, 5, 6]
    asked = (adb.folder() / "bin" / "asked").read_text().splitlines()
    assert len(asked) == 6
    assert "--num_cpu_threads=4" in asked[0]
    assert "--max_output_tokens=64" in asked[0]
    assert f"--model_path={adb.folder()}/bundle/model.litertlm" in asked[0]
    prompt = (adb.folder() / "bin" / "prompt.txt").read_text()
    assert prompt == bundle.tokenizer().text_after_bos(bundle.reference().prompt_ids[0].tolist())


@pytest.mark.usefixtures("adb")
def test_a_program_that_is_there_is_used_again(bundle, tmp_path):
    with pytest.raises(RunError, match=r"no litert_lm_advanced_main in .*; build LiteRT-LM's"):
        bench_on_device(connect(None), bundle, None, EFFORT)
    bench_on_device(connect(None), bundle, program(tmp_path / "p"), EFFORT)
    assert bench_on_device(connect(None), bundle, None, EFFORT).tokens_per_s(mtp=False) == 20.25


@pytest.mark.usefixtures("adb")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "#!/bin/sh\necho 'ERROR: Unknown command line flag'; exit 1\n",
            "Unknown command line flag",
        ),
        ("#!/bin/sh\necho hello\n", "printed no decode speed, but: hello"),
    ],
)
def test_a_program_that_fails_is_said_in_one_line(bundle, tmp_path, text, said):
    with pytest.raises(RunError, match=said):
        bench_on_device(connect(None), bundle, program(tmp_path / "p", text), EFFORT)


@pytest.mark.usefixtures("adb")
def test_a_program_that_is_not_there_is_refused(bundle, tmp_path):
    with pytest.raises(RunError, match="nowhere: no such program"):
        bench_on_device(connect(None), bundle, tmp_path / "nowhere", EFFORT)


@pytest.mark.usefixtures("adb")
def test_the_command_prints_a_table_or_json(bundle, tmp_path):
    command = ["bench", str(bundle.folder), "--adb", "--repeats", "1"]
    first = [*command, "--adb-program", str(program(tmp_path / "p"))]
    shown = CliRunner().invoke(main, first)
    assert shown.exit_code == 0, shown.output
    assert "Pixel 10" in shown.output
    assert "62%" in shown.output
    assert "Too few runs" in shown.output
    many = CliRunner().invoke(main, [*command[:-1], "8"])
    assert "1.51-1.51" in many.output
    assert "Too few runs" not in many.output
    printed = CliRunner().invoke(main, [*command, "--json"])
    values = json.loads(printed.stdout)
    assert (values["tokens_per_s"], values["tokens_per_s_mtp"]) == (20.25, 30.5)


def test_the_command_says_what_is_missing_in_one_line(adb, bundle):
    adb.connect({})
    shown = CliRunner().invoke(main, ["bench", str(bundle.folder), "--adb"])
    assert shown.exit_code == 1
    assert "error: no Android device is connected" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adb", "--html", "x.html"], "--html is of no use with --adb"),
        (["--adb", "--draft-length", "3"], "--draft-length is of no use with --adb"),
        (["--adb", "--runtime", "onnx"], "--runtime is of no use with --adb"),
        (["--adb", "--provider", "X"], "--provider is of no use with --adb"),
        (["--serial", "x"], "--serial needs --adb"),
        (["--adb-program", "x"], "--adb-program needs --adb"),
    ],
)
def test_an_option_of_the_other_bench_is_wrong_usage(bundle, options, said):
    shown = CliRunner().invoke(main, ["bench", str(bundle.folder), *options])
    assert shown.exit_code == 2
    assert said in shown.stderr
