"""Run exported Gemma 4 bundles with their MTP drafter: `load` one, then `generate`.

docs/python-api.md is the guide; `gemma-run` is the command. Nothing here imports torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime_py.bundle.chat_template import Message
    from runtime_py.decoding.sampling import SamplingParams
    from runtime_py.errors import RunError
    from runtime_py.model.model import Model, load
    from runtime_py.model.stream import FinishReason, Piece, Result, Stats, Stream

__all__ = [
    "FinishReason",
    "Message",
    "Model",
    "Piece",
    "Result",
    "RunError",
    "SamplingParams",
    "Stats",
    "Stream",
    "load",
]

if not TYPE_CHECKING:
    # Every module of the package imports this one first: also the processes that only render a
    # template, and the command before it heeds Ctrl-C. So what is offered is imported when used.
    _HOMES = {
        "bundle.chat_template": ("Message",),
        "decoding.sampling": ("SamplingParams",),
        "errors": ("RunError",),
        "model.model": ("Model", "load"),
        "model.stream": ("FinishReason", "Piece", "Result", "Stats", "Stream"),
    }

    def __getattr__(name):
        from importlib import import_module

        for home, names in _HOMES.items():
            if name in names:
                globals()[name] = value = getattr(import_module(f"{__name__}.{home}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return [*globals(), *__all__]
