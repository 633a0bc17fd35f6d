"""Where files go that make the next start quicker, and what they depend on."""

import contextlib
import os
import platform
import sys
from pathlib import Path


def user_cache(part: str) -> Path:
    """Our folder in the user's cache directory, by the platform's convention."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "gemma-export" / part


def processor() -> str:
    """A home directory may be shared by machines that differ."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return platform.machine() + line
    return platform.machine() + platform.processor()
