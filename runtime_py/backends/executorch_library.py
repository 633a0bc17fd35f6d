"""Find the torch-free ExecuTorch libraries and the shim over them, and load both into the process.

The libraries come from an installed executorch package, which is not imported (that would import
torch), or else from the gemma-export-executorch wheel. The shim comes from that wheel, if it was
built for the same version, or else is compiled once into the user's cache directory.
"""

import ctypes
import functools
import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from runtime_py.backends.executorch_shim.build import (
    LIBRARIES,
    PACKAGE,
    SHIM_NAME,
    BuildError,
    compile_shim,
    source_digest,
    written_at_once,
)
from runtime_py.errors import RunError

MAX_RANK = 8
_VERSION = 1  # GX_VERSION of shim.h
_QUANTIZED = "libexecutorch_kernels_quantized.so"
_QUANTIZED_OPERATOR = b"quantized_decomposed::embedding_byte.out"


class Tensor(ctypes.Structure):
    """gx_tensor of shim.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
    )


_TENSORS = ctypes.POINTER(Tensor)
_PROGRAM = ctypes.c_void_p
_ERROR = (ctypes.c_char_p, ctypes.c_uint64)
_INT = ctypes.c_int32
_SIGNATURES = {
    "gx_version": (_INT, ()),
    "gx_has_operator": (_INT, (ctypes.c_char_p,)),
    "gx_load": (_PROGRAM, (ctypes.c_char_p, ctypes.c_uint32, *_ERROR)),
    "gx_unload": (None, (_PROGRAM,)),
    "gx_num_threads": (ctypes.c_uint32, ()),
    "gx_num_methods": (_INT, (_PROGRAM,)),
    "gx_method_name": (ctypes.c_char_p, (_PROGRAM, _INT)),
    "gx_num_tensors": (_INT, (_PROGRAM, _INT, _INT)),
    "gx_describe": (_INT, (_PROGRAM, _INT, _INT, _INT, _TENSORS)),
    "gx_run": (_INT, (_PROGRAM, _INT, _TENSORS, _INT, _TENSORS, _INT, *_ERROR)),
}


@dataclass(frozen=True)
class _Installed:
    """An installed package: executorch's own, or our wheel."""

    folder: Path
    version: str  # of executorch


@functools.cache
def load_library() -> ctypes.CDLL:
    """The shim, with the signatures of its functions set. Loaded once per process.

    Raises:
        RunError: if the libraries are not installed, or the shim can be neither found nor built.
    """
    ours = _installed(PACKAGE)
    executorch = _installed("executorch") or ours
    if executorch is None:
        raise RunError(
            "this bundle needs ExecuTorch; pip install 'gemma-export[executorch]', or choose "
            "another of its runtimes with --runtime"
        )
    try:
        # By full path and first: what the shim and the later ones need is then found by name.
        for name in LIBRARIES:
            if name != _QUANTIZED:
                ctypes.CDLL(str(executorch.folder / "lib" / name))
        shim = ctypes.CDLL(str(_shim_path(executorch, ours)))
        _declare(shim)
        # A process that exports has these kernels already, and none may be registered twice.
        if not shim.gx_has_operator(_QUANTIZED_OPERATOR):
            ctypes.CDLL(str(executorch.folder / "lib" / _QUANTIZED))
    except (OSError, AttributeError) as error:
        raise RunError(
            f"ExecuTorch {executorch.version} in {executorch.folder} does not load ({error}); "
            "pip install --force-reinstall 'gemma-export[executorch]'"
        ) from error
    return shim


def _declare(shim: ctypes.CDLL) -> None:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(shim, name)
        function.restype, function.argtypes = result, arguments
    if shim.gx_version() != _VERSION:
        raise OSError(f"its shim has version {shim.gx_version()}, needed {_VERSION}")


def _installed(package: str) -> _Installed | None:
    spec = importlib.util.find_spec(package)  # does not import a package at the top
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "lib" / LIBRARIES[0]).is_file():
            return _Installed(Path(folder), metadata.version(package.replace("_", "-")))
    return None


def _shim_path(executorch: _Installed, ours: _Installed | None) -> Path:
    if ours is not None and ours.version == executorch.version:
        return ours.folder / SHIM_NAME
    about = f"{executorch.version}-{platform.machine()}-{source_digest()}"
    path = _cache_directory() / f"shim-{about}.so"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with written_at_once(path) as writing:
            compile_shim(executorch.folder, writing)
    except (BuildError, OSError) as error:
        wheel = PACKAGE.replace("_", "-")
        raise RunError(
            f"the shim for ExecuTorch {executorch.version} does not build ({error}); "
            f"pip install {wheel}=={executorch.version}, which brings it, or install g++"
        ) from error
    return path


def _cache_directory() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "gemma-export" / "executorch"
