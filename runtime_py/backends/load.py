"""Load a bundle's graphs: choose an installed runtime and open its backend."""

from collections.abc import Callable
from pathlib import Path

from runtime_py.backends import Backend, SessionOptions
from runtime_py.backends.installed import is_installed, require
from runtime_py.backends.probe import probe_model
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.errors import RunError


def _open_litert(model: Path, options: SessionOptions) -> Backend:
    from runtime_py.backends.litert.backend import LiteRTBackend

    _refuse_providers(model, options)
    return LiteRTBackend(model, num_threads=options.num_threads)


def _open_executorch(model: Path, options: SessionOptions) -> Backend:
    from runtime_py.backends.executorch.backend import open_executorch

    _refuse_providers(model, options)
    return open_executorch(model, num_threads=options.num_threads)


def _open_onnx(model: Path, options: SessionOptions) -> Backend:
    from runtime_py.backends.onnx.backend import open_onnx

    return open_onnx(model, num_threads=options.num_threads, providers=options.providers)


def _refuse_providers(model: Path, options: SessionOptions) -> None:
    if options.providers:
        raise RunError(
            f"{model}: {', '.join(options.providers)}: only onnxruntime has execution providers; "
            "leave --provider out, or choose --runtime onnx"
        )


Open = Callable[[Path, SessionOptions], Backend]
BACKENDS: dict[RuntimeName, Open] = {
    "litert": _open_litert,
    "executorch": _open_executorch,
    "onnx": _open_onnx,
}


def pick_runtime(bundle: Bundle, wanted: str | None) -> RuntimeName:
    """The runtime to use: the wanted one, or the first of the bundle's that is installed.

    Raises:
        RunError: if the bundle was not made for it, or none of the bundle's is installed.
    """
    names = list(bundle.manifest.runtimes)
    if wanted is None:
        name = next(filter(is_installed, names), names[0])
    else:
        name = bundle.made_for(wanted)
    require(name, bundle.folder)
    return name


def load_backend(bundle: Bundle, runtime: RuntimeName, options: SessionOptions) -> Backend:
    """Load the graphs; the caller closes the backend.

    Raises:
        RunError: if they do not load, or their sizes are not the manifest's.
    """
    backend = BACKENDS[runtime](bundle.model_path(runtime), options)
    try:
        _prove_sizes(bundle, runtime, backend)
    except RunError:
        backend.close()
        raise
    return backend


def _prove_sizes(bundle: Bundle, runtime: RuntimeName, backend: Backend) -> None:
    model = bundle.manifest.model
    for name, said, found in (
        ("vocab_size", model.vocab_size, backend.vocab_size),
        ("hidden_size", model.hidden_size, backend.hidden_size),
        ("context_length", model.context_length, backend.cache_length),
        ("has_drafter", model.has_drafter, backend.has_drafter),
    ):
        if said != found:
            raise RunError(
                f"{bundle.folder}: the manifest says {name} is {said}, the graphs of {runtime} "
                f"say {found}; copy all files of one bundle again"
            )


def try_backend(bundle: Bundle, runtime: RuntimeName, options: SessionOptions) -> None:
    """Load and call the graphs in a separate process first, since they may crash it.

    Raises:
        RunError: if they crashed it or hung.
    """
    size_bytes = sum(entry.size_bytes for entry in bundle.manifest.files.values())
    probe_model(runtime, bundle.model_path(runtime), size_bytes, options)
