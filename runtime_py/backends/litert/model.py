"""One .tflite section of a .litertlm, loaded in place, and its signatures bound to arrays."""

import contextlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_py.backends.litert.contract import Signatures, SignatureSpec
from runtime_py.backends.litert.library import (
    CompiledModel,
    LiteRtError,
    aligned,
    environment,
    reason,
)
from runtime_py.backends.litert.mapping import MappedRange
from runtime_py.backends.litert.weight_cache import WeightCache
from runtime_py.errors import RunError
from runtime_py.formats.flatbuffer import FlatbufferError, Table
from runtime_py.formats.litertlm import Section
from runtime_py.formats.tensor_spec import TensorSpec
from runtime_py.formats.tflite import read_model, read_signatures, read_tensors, read_weights

Array = npt.NDArray[Any]

_logger = logging.getLogger(__name__)
_DTYPES = {"float32": np.float32, "int32": np.int32, "int8": np.int8}


class LoadedModel:
    """A compiled model over a mapped section.

    Raises:
        RunError: if LiteRT is missing, the section is damaged, or LiteRT refuses it.
    """

    def __init__(
        self,
        bundle: Path,
        section: Section,
        num_threads: int,
        weight_cache: Callable[[], WeightCache] | None = None,
    ) -> None:
        where = f"{bundle}: {section.model_type}"
        environment()  # reports a missing LiteRT before the file is read
        self._model: CompiledModel | None = None
        self._cache: WeightCache | None = None
        try:
            self._range = MappedRange(bundle, section.begin, section.end)
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            raise RunError(f"{where}: cannot map it: {error}") from error
        try:
            content = self._range.data.data
            tflite = read_model(content)
            read_weights(tflite, len(content))  # LiteRT does not check where they lie
            self._cache = cache = weight_cache() if weight_cache else None
            if cache is not None:
                cache.begin()
            self._model = CompiledModel(self._range.data, num_threads, cache.path if cache else "")
            specs = {spec.name: spec for spec in self._read_signatures(self._model, tflite)}
            if cache is not None and (packed := cache.commit()):
                # While packing, XNNPACK allocates a buffer as large as the largest weight and keeps
                # it: 0.2 GB for E2B's head. Loading again from the packed file avoids that.
                self._model.close()
                self._model = CompiledModel(self._range.data, num_threads, packed)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they refer to the mapped bytes
            begun = self._cache
            self.close()
            if begun is not None:
                begun.discard()
            if isinstance(error, FlatbufferError | LiteRtError):
                raise RunError(f"{where}: does not load: {error}; copy the file again") from error
            raise  # Ctrl-C, too, leaves nothing half-written
        self.signatures = Signatures(where, specs)

    def bind(self, spec: SignatureSpec, shared: Mapping[str, Array]) -> "BoundSignature":
        """`shared`: arrays, by name, for tensors that several signatures use."""
        assert self._model is not None
        return BoundSignature(self._model, self.signatures.where, spec, shared)

    def release(self) -> None:
        """Drop the file's pages from memory; they are read again when needed."""
        self._range.release()

    def close(self) -> None:
        """Free the model. Nothing may use signatures bound to it afterwards."""
        if self._model is not None:
            self._model.close()
        self._model = None
        self._range.close()
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _read_signatures(self, model: CompiledModel, tflite: Table) -> Iterator[SignatureSpec]:
        """Shapes come from the file: before LiteRT tells the shape of an output, it allocates all
        of a graph's tensors, 0.13 GB for E2B's prefill_1024, which most prompts never run.
        """
        stored = {found.name: found for found in read_signatures(tflite, read_tensors(tflite))}
        for name, signature in model.signatures().items():
            for text in (name, *signature.inputs, *signature.outputs):
                if not text.isprintable():
                    raise FlatbufferError(f"a tensor is named {text!r}")
            found = stored[name]
            yield SignatureSpec(
                name=name,
                index=signature.index,
                inputs={key: found.inputs[key] for key in signature.inputs},
                outputs={key: found.outputs[key] for key in signature.outputs},
            )


class BoundSignature:
    """A signature bound to its arrays; it runs any number of times without allocating.

    Attributes:
        inputs: arrays to fill before run(), without the shared ones.
        outputs: arrays that run() fills, without the shared ones.
    """

    def __init__(
        self,
        model: CompiledModel,
        where: str,
        spec: SignatureSpec,
        shared: Mapping[str, Array],
    ) -> None:
        self._what = f"{where}: {spec.name}"
        self.inputs, self.outputs = (
            {name: zeros(tensor) for name, tensor in tensors.items() if name not in shared}
            for tensors in (spec.inputs, spec.outputs)
        )
        self._call = model.call(
            spec.index,
            [shared[name] if name in shared else self.inputs[name] for name in spec.inputs],
            [shared[name] if name in shared else self.outputs[name] for name in spec.outputs],
        )

    def run(self) -> None:
        status = self._call.run()
        if status:
            raise RunError(f"{self._what}: does not run: {reason(status)}; copy the file again")


def zeros(tensor: TensorSpec) -> Array:
    """An aligned array that LiteRT can read or write in place."""
    return aligned(tensor.shape, _DTYPES[tensor.dtype])


@contextlib.contextmanager
def native_messages_hidden() -> Iterator[None]:
    """Silence descriptor 2, unless debugging: LiteRT writes about twenty lines there per model.

    Release 2.3.0 offers Python no log level. Two lines at the exit of the process remain.
    """
    if _logger.isEnabledFor(logging.DEBUG):
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
