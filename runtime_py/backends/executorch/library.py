"""Find ExecuTorch's torch-free libraries and the shim over them, and load both into the process.

The libraries come from an installed executorch package, which is not imported (that would import
torch). The shim comes compiled with this package, for the pinned release on Linux x86-64 and
aarch64; for anything else it is compiled once into the user's cache directory.

A device has no use for what executorch's wheel asks for besides: after the base install,
`pip install --no-deps executorch==1.5.1` (74 MB) brings all that is needed here.
"""

import contextlib
import ctypes
import functools
import platform
from pathlib import Path

from runtime_py.backends.executorch.shim.compiler import BuildError, compile_shim, source_digest
from runtime_py.backends.executorch.shim.installed import (
    LIBRARIES,
    PINNED_VERSION,
    Installed,
    find_executorch,
)
from runtime_py.backends.executorch.shim.prebuilt import (
    ARCHITECTURES,
    describe_machine,
    find_prebuilt,
    has_wheels,
)
from runtime_py.backends.installed import install_command
from runtime_py.device.caches import not_private, open_own, user_cache
from runtime_py.errors import RunError

MAX_RANK = 8
_VERSION = 2  # GX_VERSION of shim.h
_PINNED = f"executorch=={PINNED_VERSION}"
_ANOTHER = "choose another runtime of the bundle with --runtime"
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
    "gx_find_buffer": (_INT, (_PROGRAM, _INT, ctypes.c_char_p, _TENSORS)),
    "gx_run": (_INT, (_PROGRAM, _INT, _TENSORS, _INT, _TENSORS, _INT, *_ERROR)),
}


@functools.cache
def load_library() -> ctypes.CDLL:
    """The shim, with the signatures of its functions set. Loaded once per process.

    Raises:
        RunError: if the libraries are not installed, or the shim can be neither found nor built.
    """
    executorch = find_executorch()
    if executorch is None:
        step = _next_step(install_command("executorch"))
        raise RunError(f"this bundle needs ExecuTorch; {step}")
    try:
        # By full path, before the shim: its dependencies are then found by name.
        for name in LIBRARIES:
            if name != _QUANTIZED:
                ctypes.CDLL(str(executorch.lib / name))
        shim = ctypes.CDLL(str(_shim_path(executorch)))
        _declare(shim)
        # An exporting process has these kernels already, and registering one twice is an error.
        if not shim.gx_has_operator(_QUANTIZED_OPERATOR):
            ctypes.CDLL(str(executorch.lib / _QUANTIZED))
    except (OSError, AttributeError) as error:
        step = _next_step(f"pip install --force-reinstall --no-deps {_PINNED}")
        found = f"ExecuTorch {executorch.version} in {executorch.folder}"
        raise RunError(f"{found} does not load ({error}); {step}") from error
    return shim


def _declare(shim: ctypes.CDLL) -> None:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(shim, name)
        function.restype, function.argtypes = result, arguments
    if shim.gx_version() != _VERSION:
        raise OSError(f"its shim has version {shim.gx_version()}, needed {_VERSION}")


def _next_step(way: str) -> str:
    """The next step: `way` on a machine that ExecuTorch has wheels for."""
    if has_wheels():
        return f"{way}, or {_ANOTHER}"
    needed = f"64-bit Linux with glibc on {' or '.join(ARCHITECTURES)}"
    return f"its wheels are for {needed}, this machine is {describe_machine()}: {_ANOTHER}"


def _shim_path(executorch: Installed) -> Path:
    return find_prebuilt(executorch.version) or _compiled(executorch)


def _compiled(executorch: Installed) -> Path:
    about = f"{executorch.version}-{platform.machine()}-{source_digest()}"
    path = user_cache("executorch") / f"shim-{about}.so"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if why := not_private(path.parent):
            raise RunError(
                f"{path.parent}: {why}, and what is loaded from there runs as this user; "
                "remove it, or chmod 700 it"
            )
        with contextlib.suppress(OSError), open_own(path):
            return path
        compile_shim(executorch, path)
    except (BuildError, OSError) as error:
        step = _next_step(f"pip install --no-deps {_PINNED}, which needs no compiler")
        raise RunError(
            f"no shim is compiled for ExecuTorch {executorch.version} on this machine, and it does "
            f"not compile here ({error}); install g++, or {step}"
        ) from error
    return path
