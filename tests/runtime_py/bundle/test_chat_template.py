import subprocess
import sys
from pathlib import Path

import pytest

from runtime_py.bundle import template_process
from runtime_py.bundle.chat_template import ChatTemplate, read_template
from runtime_py.errors import RunError

HELLO = [{"role": "user", "content": "hi"}]


def rendered(template, **special_tokens):
    return ChatTemplate(template, special_tokens).render(HELLO)[0]


def test_a_template_sees_messages_and_the_special_tokens_by_name():
    template = (
        "{{ bos_token }}{{ messages[0]['role'] }} {{ messages[0].content }}{{ eos_token }}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    assert rendered(template, bos_token="<b>", eos_token="<e>") == "<b>user hi<e>>"


def test_what_transformers_leaves_unset_is_undefined_or_none():
    template = (
        "{{ unk_token is defined }} {{ tools is not none }} {{ documents is none }} "
        "{{ enable_thinking is defined }}"
    )
    assert rendered(template) == "False False True False"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ namespace(_a=1) }}", "no attribute '_a'"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ raise_exception('two\nlines') }}", "two lines"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ messages[0].nothing.at_all }}", "has no attribute 'nothing'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'other' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "recursion"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "recursion"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ [1] * 10 ** 9 }}", "more than 512 MiB"),
        ("{{ 'x'.ljust(10 ** 11) }}", "more than 512 MiB"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "more than 16777216 char"),
    ],
)
def test_a_template_that_fails_says_why_in_one_line(template, said):
    with pytest.raises(RunError, match=f"the chat template fails: .*{said}") as failure:
        rendered(template)
    assert "\n" not in str(failure.value)


def test_a_special_token_cannot_take_the_place_of_the_messages():
    with pytest.raises(RunError, match="multiple values for keyword argument 'messages'"):
        rendered("hi", messages="x")


@pytest.fixture
def one_second(monkeypatch, tmp_path):
    """The same program with a shorter limit."""
    path = tmp_path / "template_process.py"
    source = Path(template_process.__file__).read_text()
    path.write_text(source.replace("MAX_CPU_S = 5", "MAX_CPU_S = 1"))
    monkeypatch.setattr(template_process, "__file__", str(path))


@pytest.mark.usefixtures("one_second")
def test_an_endless_template_is_ended():
    with pytest.raises(RunError, match="takes longer than 5 s"):
        rendered("{{ 7 ** (10 ** 9) }}")


def test_a_template_that_waits_is_ended(monkeypatch):
    monkeypatch.setattr("runtime_py.bundle.chat_template.MAX_TIME_S", 0.01)
    with pytest.raises(RunError, match="takes longer than"):
        rendered("hi")


def test_the_process_has_no_environment(monkeypatch):
    """A hole in the sandbox finds nothing."""
    monkeypatch.setenv("SECRET", "secret")
    seen = {}

    def run(command, **options):
        seen.update(command=command, env=options["env"])
        return real(command, **options)

    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    assert rendered("hi") == "hi"
    assert "SECRET" not in seen["env"]
    assert seen["command"][:3] == [sys.executable, "-I", "-S"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a" * (5 << 20)])
def test_a_file_that_is_no_template_is_refused(tmp_path, content):
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"chat_template\.jinja: (cannot be read|larger)"):
        read_template(path)
