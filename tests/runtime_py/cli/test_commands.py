"""What becomes of a model's tokens: the text shown, kept and printed as JSON, and why it ended."""

import json
import os

import pytest
from click.testing import CliRunner

from runtime_py.backends.load import BACKENDS
from runtime_py.bundle.chat_template import ChatTemplate
from runtime_py.bundle.manifest import file_entry
from runtime_py.cli.commands import main
from tests.runtime_py.bundles import byte_tokenizer
from tests.runtime_py.commands import gemma_run, hostile_bundle
from tests.runtime_py.scripted_backend import ScriptedBackend

BEGIN, END, STOP = 258, 259, 1  # <think>, </think>, <stop>
CONTEXT = 128


def spelled(text):
    """Ids of characters; < and > begin and end a thought, . stops."""
    control = {"<": BEGIN, ">": END, ".": STOP}
    tokenizer = byte_tokenizer()
    return [control.get(sign) or tokenizer.encode(sign).ids[0] for sign in text]


class Saying(ScriptedBackend):
    """Says one text again and again after each prompt, which ends in [model]."""

    def __init__(self, text):
        super().__init__(vocab_size=300)
        self._said = spelled(text)
        self._prompt_end = spelled("]")[0]

    def target_logits(self, tokens):
        num_said = tokens[::-1].index(self._prompt_end)
        logits = super().target_logits(tokens)
        logits[self._said[num_said % len(self._said)]] = 100
        return logits


@pytest.fixture
def bundle(tmp_path):
    """With two tokens to think between."""
    folder = hostile_bundle(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<think>", "</think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    values = json.loads((folder / "manifest.json").read_text())
    names = {"bos_token": "<bos>", "soc_token": "<think>", "eoc_token": "</think>"}
    values["tokens"]["special_tokens"] = names
    values["files"]["tokenizer.json"] = file_entry(folder / "tokenizer.json").model_dump()
    (folder / "manifest.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def runs(bundle, monkeypatch):
    """A command on a bundle whose model says a text; its exit code, stdout and stderr."""

    def run(command, said, *options, **more):
        monkeypatch.setitem(BACKENDS, "onnx", lambda *_: Saying(said))
        done = CliRunner().invoke(main, [command, str(bundle), *map(str, options)], **more)
        assert done.exit_code == 0, done.stderr
        return done

    return run


def answer_of(runs, said, *options):
    done = runs("generate", said, "--prompt", "hi", "--draft-length", 3, "--json", *options)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("<aha>yes.", "yes"),
        ("a<b>c<d<e>f.", "acf"),
        ("yes>no.", "yesno"),
        ("yes<never ended.", "yes"),
        ("<all of it>.", ""),
    ],
)
def test_thoughts_are_not_in_the_text_but_in_the_tokens(runs, said, text):
    answer = answer_of(runs, said)
    assert answer["text"] == text
    assert answer["token_ids"] == spelled(said)


def test_thoughts_are_neither_shown_nor_kept_in_a_chat(runs, monkeypatch):
    asked = []
    render = ChatTemplate.render
    monkeypatch.setattr(
        ChatTemplate, "render", lambda self, said: asked.append(said) or render(self, said)
    )
    done = runs("chat", "<aha>yes.", "--draft-length", 3, input="one\ntwo\n/quit\n")
    assert done.stdout == "yes\nyes\n"
    assert asked[-1] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "two"},
    ]


@pytest.mark.parametrize(
    ("said", "options", "reason", "shown"),
    [
        ("yes.", (), "stop", ""),
        ("yes", ("--max-new-tokens", 5), "length", "cut by --max-new-tokens"),
        ("yes.", ("--max-new-tokens", 4), "stop", ""),
        ("yes", (), "context", "cut by the end of the context"),
        ("<yes", ("--max-new-tokens", 5), "length", "in the middle of a thought"),
    ],
)
def test_why_an_answer_ended_is_said(runs, said, options, reason, shown):
    assert answer_of(runs, said, *options)["finish_reason"] == reason
    done = runs("generate", said, "--prompt", "hi", "--draft-length", 0, *options)
    assert shown in done.stderr
    assert ("cut" in done.stderr) == (reason != "stop")


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (["--prompt", "caf\udce9"], {}, "the prompt is not UTF-8 at character 4"),
        (["--prompt", "-"], {"input": b"caf\xe9"}, "the prompt is not UTF-8 at character 4"),
        (["--prompt", "-"], {"input": b"a" * 2_000_000}, "longer than 32768 bytes"),
        (["--prompt", "-"], {"input": b""}, "the prompt is empty"),
        (["--prompt", "-"], {"preexec_fn": lambda: os.close(0)}, "the prompt is empty"),
        (["--prompt", "-", "--raw"], {"input": b"\xff"}, "not UTF-8 at character 1"),
    ],
)
def test_a_prompt_that_no_model_could_read_is_refused_before_it_is_loaded(
    bundle, arguments, options, said
):
    done = gemma_run("generate", bundle, *arguments, **options)
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_a_line_that_is_not_utf_8_does_not_end_a_chat(runs):
    done = runs("chat", "yes.", "--draft-length", 3, input=b"caf\xe9\nhello\n/quit\n")
    assert "the prompt is not UTF-8 at character 4" in done.stderr
    assert done.stdout == "yes\n"


def test_a_misspelt_runtime_gets_a_suggestion():
    done = CliRunner().invoke(main, ["check", "x", "--runtime", "LiteRTT"])
    assert done.exit_code == 2
    assert done.stderr.endswith("Did you mean litert?\n")
