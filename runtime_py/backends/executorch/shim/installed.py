"""Find the installed executorch package without importing it, which would import torch."""

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from runtime_py.backends.installed import TESTED

PINNED_VERSION = TESTED["executorch"]  # the shim's sources are written for exactly this release
# In loading order; none of them links torch.
LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_threadpool.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_kernels_quantized.so",
)


@dataclass(frozen=True)
class Installed:
    folder: Path
    version: str

    @property
    def include(self) -> Path:
        return self.folder / "include"

    @property
    def lib(self) -> Path:
        return self.folder / "lib"


def find_executorch() -> Installed | None:
    """The installed executorch, if it has the C++ libraries."""
    spec = importlib.util.find_spec("executorch")  # does not import a top-level package
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found = Path(folder)
        if (found / "lib" / LIBRARIES[0]).is_file():
            return Installed(found, metadata.version("executorch"))
    return None
