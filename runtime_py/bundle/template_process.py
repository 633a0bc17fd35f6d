"""Render chat templates in a separate process, which chat_template.py starts and limits.

A template comes with the bundle and is a program: it may loop or fill memory without end, and
jinja2's sandbox has had holes. So it runs here, with no environment variables, no imports but
jinja2, little memory and little time.

Run as `python -I -S template_process.py FOLDER...`, where the folders hold jinja2 and markupsafe.
The request arrives on stdin and the reply leaves on stdout, both as JSON.
"""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

MAX_BYTES = 512 << 20  # of address space
MAX_CPU_S = 5
MAX_CHARS = 16 << 20  # of all texts together


def main() -> None:
    """Answer one request: {"template", "conversations", "special_tokens"}.

    The reply is {"texts"}, one for each conversation, or {"error"}.
    """
    sys.path += sys.argv[1:]
    environment = _environment()
    request = json.load(sys.stdin.buffer)
    _limit()
    try:
        reply: dict[str, Any] = {"texts": list(_render(environment, **request))}
    except MemoryError:
        reply = {"error": f"it needs more than {MAX_BYTES >> 20} MiB of memory"}
    except Exception as error:  # a template can raise anything
        reply = {"error": f"{error}" or type(error).__name__}
    sys.stdout.buffer.write(json.dumps(reply).encode())


def _limit() -> None:
    with suppress(ImportError):  # Windows has none; the caller's time limit remains
        import resource

        # Imports take long on a slow machine and do not count.
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = math.ceil(used.ru_utime + used.ru_stime) + MAX_CPU_S
        limits = {
            resource.RLIMIT_AS: MAX_BYTES,
            resource.RLIMIT_CPU: cpu_s,
            resource.RLIMIT_FSIZE: 0,  # it may write no file
            resource.RLIMIT_CORE: 0,
        }
        for limit, value in limits.items():
            with suppress(ValueError, OSError):  # macOS refuses to set RLIMIT_AS
                resource.setrlimit(limit, (value, value))


def _render(
    environment: Any, template: str, conversations: list[Any], special_tokens: dict[str, str]
) -> Iterator[str]:
    compiled = environment.from_string(template)
    num_chars = 0
    for messages in conversations:
        pieces = []
        # What transformers passes; unset tokens are undefined there too.
        values = {"messages": messages, "tools": None, "documents": None}
        for piece in compiled.generate(**values, add_generation_prompt=True, **special_tokens):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > MAX_CHARS:
                raise ValueError(f"it writes more than {MAX_CHARS} characters")
        yield "".join(pieces)


def _environment() -> Any:
    """The settings, filters and functions of transformers' utils/chat_template_utils.py."""
    import jinja2.ext
    import jinja2.sandbox

    class Namespace(jinja2.utils.Namespace):
        """Refuses names that reach into Python."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *values = args
            names = dict(*values, **kwargs)
            for name in names:
                _refuse_hidden(name)
            jinja2.utils.Namespace.__init__(self, names)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_hidden(name)
            super().__setitem__(name, value)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    functions: dict[str, Any] = {
        "raise_exception": _raise_exception,
        "strftime_now": lambda layout: datetime.now().strftime(layout),
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": Namespace,
    }
    environment.globals.update(functions)
    environment.filters["tojson"] = _to_json
    return environment


def _refuse_hidden(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise ValueError(f"a namespace has no attribute {name!r}")


def _raise_exception(message: str) -> None:
    raise ValueError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    options: dict[str, Any] = {"indent": indent, "separators": separators}
    return json.dumps(value, ensure_ascii=ensure_ascii, sort_keys=sort_keys, **options)


if __name__ == "__main__":
    main()
