"""Render a bundle's chat template: messages become the text that the model was trained on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime_py.bundle import template_process
from runtime_py.errors import RunError

Message = Mapping[str, str]  # {"role": "user" | "assistant" | "system", "content": text}

MAX_TEMPLATE_BYTES = 4 << 20  # published ones have at most 30,000
# The template process limits its own CPU time, which a busy machine may give out slowly. Windows
# has no such limit, so there the wall clock is all.
MAX_TIME_S = 60.0 if find_spec("resource") else 10.0
# What Python needs to start, and the time zone, which a template may ask for.
_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")

_ENDLESS = f"the chat template takes longer than {template_process.MAX_CPU_S} s; correct it"
_OUT_OF_TIME = [-getattr(signal, name) for name in ("SIGXCPU", "SIGKILL") if hasattr(signal, name)]


def read_template(path: Path) -> str:
    """Read a template's file.

    Raises:
        RunError: if it is not UTF-8, or too large.
    """
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise RunError(f"{path}: larger than {MAX_TEMPLATE_BYTES >> 20} MiB; export again")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read as text ({error}); export again") from None


class ChatTemplate:
    """A template and the special tokens that it may use.

    Each call of `render` starts a process (70 ms on a workstation); template_process.py says why.

    Args:
        source: the template.
        special_tokens: name, such as "eos_token", -> text.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)

    def render(self, *conversations: Sequence[Message]) -> list[str]:
        """The text of each conversation, up to where the model's next turn begins.

        Raises:
            RunError: if the template refuses, fails, or takes too much time or memory.
        """
        reply = self._ask([[dict(message) for message in said] for said in conversations])
        if "error" in reply:
            reason = " ".join(str(reply["error"]).split())[:300]
            raise RunError(f"the chat template fails: {reason}")
        return [str(text) for text in reply["texts"]]

    def _ask(self, conversations: Sequence[Sequence[Message]]) -> dict[str, Any]:
        request = {
            "template": self._source,
            "conversations": conversations,
            "special_tokens": self._special_tokens,
        }
        script = template_process.__file__
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", script, *_library_folders()],
                input=json.dumps(request).encode(),
                capture_output=True,
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
                timeout=MAX_TIME_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RunError(_ENDLESS) from None
        if done.returncode in _OUT_OF_TIME:
            raise RunError(_ENDLESS)
        if done.returncode != 0:
            raise RunError(f"the chat template ends Python (exit code {done.returncode})")
        reply: dict[str, Any] = json.loads(done.stdout)
        return reply


def _library_folders() -> set[str]:
    """Where jinja2 and markupsafe lie, without importing them here."""
    specs = [find_spec(name) for name in ("jinja2", "markupsafe")]
    return {str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin}
