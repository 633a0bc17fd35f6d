"""Sizes, places of checkpoints, and what options choose."""

import tomllib

import click
import pytest

from exporter import config
from exporter.cli import command, options
from exporter.cli.resolve import resolve as resolve_options
from exporter.config import HubModel, known_sizes, load_size, parse_location
from exporter.errors import ExportError
from exporter.quantize import load_recipe
from runtime_py.terminal.option_groups import names_of

BIG = {
    "e2b": "google/gemma-4-E2B-it",
    "e4b": "google/gemma-4-E4B-it",
    "12b": "google/gemma-4-12B-it",
    "26b-a4b": "google/gemma-4-26B-A4B-it",
    "31b": "google/gemma-4-31B-it",
}


def resolve(*arguments: object):
    """What the command line makes of its options."""
    words = ["--target", "desktop", *map(str, arguments)]
    given = command.main.make_context("gemma-export", words).params
    kinds = (options.ModelOptions, options.FormatOptions, options.OutputOptions)
    groups = [kind(**{name: given[name] for name in names_of(kind)}) for kind in kinds]
    return resolve_options(given["device"], *groups)


def test_every_published_size_is_known():
    assert known_sizes() == sorted([*BIG, "tiny"])


@pytest.mark.parametrize(("size", "repo"), BIG.items())
def test_a_size_names_its_pair(size, repo):
    source = resolve("--size", size).source
    assert source.model == HubModel(repo, "main")
    assert source.drafter == HubModel(f"{repo}-assistant", "main")
    assert str(resolve("--size", size).output) == f"gemma-4-{size}-desktop"


def test_the_web_target_has_a_page_and_few_graphs():
    chosen = resolve("--target", "web", "--size", "tiny")
    assert chosen.device == "web"
    assert chosen.runtimes == ("litert",)
    assert chosen.shapes.verify_widths == (4,)
    assert resolve("--size", "tiny").shapes.verify_widths == (2, 4, 8)


def test_the_page_runs_litert():
    with pytest.raises(click.UsageError, match="the page of --target web runs LiteRT"):
        resolve("--target", "web", "--size", "tiny", "--runtime", "onnx")


@pytest.mark.parametrize(
    "words",
    [
        ("--size", "E2B", "--quantize", "INT8"),
        ("--size", "e2b", "--target", "Desktop"),
        ("--size", "e2b", "--runtime", "LiteRT"),
    ],
)
def test_names_in_any_case(words):
    source = resolve(*words)
    assert source.source == load_size("e2b")
    assert load_recipe(source.recipe).name == "int8"
    assert (source.device, source.runtimes) == ("desktop", ("litert",))


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("--size", "e2"), "e2b"),
        (("--size", "26b"), "26b-a4b"),
        (("--size", "tiny", "--target", "pi"), "raspberry-pi"),
        (("--size", "tiny", "--target", "raspberrypi"), "raspberry-pi"),
        (("--size", "tiny", "--runtime", "executorche"), "executorch"),
        (("--size", "tiny", "--kv", "int4"), "int8"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(words, nearest):
    with pytest.raises(click.UsageError, match=rf"Did you mean {nearest}\?"):
        resolve(*words)


def test_a_misspelt_recipe_gets_a_suggestion():
    with pytest.raises(ExportError, match=r"int4, int4-groups.* Did you mean float16\?"):
        load_recipe("flaot16")
    with pytest.raises(ExportError, match=r"\.toml file\.$"):
        load_recipe("zzz")


def test_a_file_as_the_model_is_named_before_a_drafter_is_asked_for(tmp_path):
    (tmp_path / "gemma.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportError, match=r"gemma\.gguf: a GGUF file, needed the folder"):
        resolve("--model", tmp_path / "gemma.gguf")


def test_the_tiny_size_is_here():
    source = load_size("tiny")
    assert (source.model / "config.json").is_file()
    assert (source.drafter / "config.json").is_file()


def test_a_revision_can_be_put_into_a_size(tmp_path, monkeypatch):
    values = (config.MODELS / "e2b.toml").read_text().replace('"main"', '"0123abc"')
    (tmp_path / "e2b.toml").write_text(values)
    monkeypatch.setattr(config, "MODELS", tmp_path)
    assert load_size("e2b").model == HubModel("google/gemma-4-E2B-it", "0123abc")


def test_an_unknown_key_of_a_size(tmp_path, monkeypatch):
    (tmp_path / "odd.toml").write_text("colour = 'red'")
    monkeypatch.setattr(config, "MODELS", tmp_path)
    with pytest.raises(ExportError, match="unknown key colour"):
        load_size("odd")


def test_kv_rows_are_float32_unless_it_is_said():
    assert resolve("--size", "tiny").kv == "float32"
    assert resolve("--size", "tiny", "--kv", "int8").kv == "int8"


def test_only_a_context_that_was_asked_for_is_insisted_on():
    assert resolve("--size", "e2b", "--context", 8192).context_asked
    assert not resolve("--size", "e2b").context_asked


def test_a_size_lends_its_drafter_to_a_fine_tune(tmp_path):
    source = resolve("--size", "e2b", "--model", tmp_path).source
    assert source.model == tmp_path
    assert source.name == tmp_path.name
    assert source.drafter == HubModel("google/gemma-4-E2B-it-assistant")


def test_parts_of_a_size_are_replaced(tmp_path):
    pinned = HubModel("google/gemma-4-E2B-it", "abc")
    assert resolve("--size", "e2b", "--model", pinned).source.model == pinned
    assert resolve("--size", "e2b", "--drafter", tmp_path).source.drafter == tmp_path
    assert resolve("--size", "e2b", "--no-drafter").source.drafter is None
    assert resolve("--size", "tiny", "--no-drafter").source.name == "gemma4-tiny"


def test_a_hub_model_gives_the_bundle_its_name():
    source = resolve("--model", "maker/fine@v1", "--no-drafter").source
    assert (source.name, source.drafter) == ("fine", None)


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("maker/model", HubModel("maker/model", "main")),
        ("maker/model@v1.2", HubModel("maker/model", "v1.2")),
        ("maker/model@refs/pr/4", HubModel("maker/model", "refs/pr/4")),
        ("Maker/gemma-4_E2B.it@0123abc", HubModel("Maker/gemma-4_E2B.it", "0123abc")),
    ],
)
def test_a_hub_id(text, location):
    assert parse_location(text) == location


@pytest.mark.parametrize(
    "text", ["model", "./maker/model", "/maker/model", "a/b/c", "../x", "~/x", "maker/", "a b/c"]
)
def test_a_path(text):
    assert str(parse_location(text)) == text.removeprefix("./").removesuffix("/")


def test_a_folder_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maker" / "model").mkdir(parents=True)
    assert parse_location("maker/model") == tmp_path.__class__("maker/model")
    (tmp_path / "maker" / "model@v1").mkdir()
    assert parse_location("maker/model@v1") == tmp_path.__class__("maker/model@v1")


@pytest.mark.parametrize("revision", ["", "..", "a/../b", "/x", "x y", "-x", "x\n"])
def test_a_revision_that_is_none(revision):
    with pytest.raises(ExportError, match="is not a revision"):
        parse_location(f"maker/model@{revision}")


@pytest.mark.parametrize("size", BIG)
def test_the_size_files_have_nothing_else(size):
    values = tomllib.loads((config.MODELS / f"{size}.toml").read_text())
    assert values.pop("runtimes", None) == (["onnx"] if size == "26b-a4b" else None)
    assert set(values) == {"name", "target", "target_revision", "drafter", "drafter_revision"}


def test_experts_go_where_they_can_run(tmp_path):
    """LiteRT, every target's default, refuses them."""
    assert resolve("--size", "26b-a4b").runtimes == ("onnx",)
    assert resolve("--size", "26b-a4b", "--model", tmp_path).runtimes == ("onnx",)
    assert resolve("--size", "26b-a4b", "--runtime", "litert").runtimes == ("litert",)
    assert resolve("--size", "31b").runtimes == ("litert",)


def test_the_help_has_the_defaults_of_every_target():
    text = command.main.get_help(click.Context(command.main))
    for name, device in config.DEVICES.items():
        (line,) = (line.split() for line in text.splitlines() if line.split()[:1] == [name])
        shown = (*device.runtimes, device.recipe, device.context_length, device.draft_length)
        assert line[1:] == [str(value) for value in shown]


def test_what_was_chosen_is_one_line(tmp_path):
    chosen = resolve("--target", "android", "--size", "e2b", "--kv", "int8", "--adapter", tmp_path)
    assert str(chosen) == (
        f"gemma-4-e2b+{tmp_path.name} for android: model google/gemma-4-E2B-it, drafter "
        f"google/gemma-4-E2B-it-assistant, adapter {tmp_path}, recipe int8, runtime litert, "
        "context 4096, 3 drafts per round, KV rows int8"
    )
    assert ": model gemma4-tiny/target, drafter gemma4-tiny/drafter," in str(
        resolve("--size", "tiny")
    )
    words = ("--model", "maker/fine", "--no-drafter", "--runtime", "onnx", "--runtime", "litert")
    assert str(resolve(*words)) == (
        "fine for desktop: model maker/fine, drafter none, recipe int8, runtime onnx and litert, "
        "context 8192"
    )
