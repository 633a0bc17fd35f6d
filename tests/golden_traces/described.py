"""What another language needs to make the same scripted backend."""

from typing import Any

from tests.runtime_py.scripted_backend import ScriptedBackend


def described(backend: ScriptedBackend) -> dict[str, Any]:
    return {
        "skill": round(100 * backend.skill),
        "vocab_size": backend.vocab_size,
        "cache_length": backend.cache_length,
        "verify_widths": list(backend.verify_widths),
        "levels": backend.levels,
        "draft_ticks": backend.draft_ticks,
        "verify_ticks": list(backend.verify_ticks.values()),
    }
