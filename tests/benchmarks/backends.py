"""Open a model file with its runtime; the other runtimes are not imported."""

from collections.abc import Callable, Iterator
from pathlib import Path

from runtime_py.backends import Backend

# (model, threads, folder for what LiteRT repacks) -> the loaded model.
Open = Callable[[Path, int, Path], Backend]


def import_backend(model: Path) -> Open:
    """What opens a file of this kind, by its name."""
    if model.suffix == ".pte":
        from runtime_py.backends.executorch.backend import open_executorch

        return lambda path, threads, _: open_executorch(path, num_threads=threads)
    if model.suffix == ".onnx":
        from runtime_py.backends.onnx.backend import open_onnx

        return lambda path, threads, _: open_onnx(path, num_threads=threads)
    from runtime_py.backends.litert.backend import LiteRTBackend

    return lambda path, threads, weight_caches: LiteRTBackend(
        path, num_threads=threads, cache_dir=weight_caches
    )


def open_backend(model: Path, num_threads: int, weight_caches: Path) -> Backend:
    return import_backend(model)(model, num_threads, weight_caches)


def model_files(model: Path) -> Iterator[Path]:
    """All files that the runtime reads when it is given `model`."""
    yield from model.parent.glob("model.*")
