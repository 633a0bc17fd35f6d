"""One .tflite section of a .litertlm, loaded in place, and its signatures with bound buffers."""

import contextlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_py.backends.litert_accelerators import EMPTY_FOLDER, hide_accelerator
from runtime_py.backends.litert_contract import Signatures, SignatureSpec, TensorSpec
from runtime_py.backends.litert_mapping import MappedBytes
from runtime_py.backends.litert_weight_cache import WeightCache
from runtime_py.errors import RunError
from runtime_py.flatbuffer import FlatbufferError, Table, pick, unpack_at
from runtime_py.litertlm import Section

Array = npt.NDArray[Any]

_logger = logging.getLogger(__name__)
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 64  # bytes, of a buffer lent to LiteRT
_DTYPES = {"float32": np.float32, "int32": np.int32}
_TYPES = {0: "float32", 2: "int32"}  # of the schema; no other is in the contract
_MAX_RANK = 8


class Runtime:
    """What the models of one bundle share: a LiteRT environment and the number of threads.

    Raises:
        RunError: if ai_edge_litert is not installed.
    """

    def __init__(self, num_threads: int) -> None:
        try:
            from ai_edge_litert import compiled_model, environment
        except ImportError as error:
            raise RunError(
                f"this bundle needs ai_edge_litert ({error}); pip install 'gemma-export[litert]'"
            ) from error
        self._litert = compiled_model
        self._num_threads = num_threads
        hide_accelerator()
        self._environment = environment.Environment.create(runtime_path=EMPTY_FOLDER)

    def compile(self, data: bytes, weight_cache_path: str) -> Any:
        """Raises RuntimeError if LiteRT refuses the model."""
        cpu_options = self._litert.CpuOptions(
            num_threads=self._num_threads, xnnpack_weight_cache_path=weight_cache_path
        )
        options = self._litert.Options(
            hardware_accelerators=self._litert.HardwareAccelerator.CPU, cpu_options=cpu_options
        )
        return self._litert.CompiledModel.from_buffer(
            data, environment=self._environment, options=options
        )


class LoadedModel:
    """A compiled model over a mapped section.

    Raises:
        RunError: if the section is damaged, or LiteRT refuses it.
    """

    def __init__(
        self, runtime: Runtime, bundle: Path, section: Section, cache: WeightCache | None = None
    ) -> None:
        where = f"{bundle}: {section.model_type}"
        self._model: Any = None
        try:
            self._bytes = MappedBytes(bundle, section.begin, section.end)
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            raise RunError(f"{where}: cannot map it: {error}") from error
        try:
            check_tflite(self._bytes.data)
            self._model = runtime.compile(self._bytes.data, cache.path if cache else "")
            specs = {spec.name: spec for spec in self._read_signatures()}
        except (FlatbufferError, RuntimeError, ValueError) as error:
            traceback.clear_frames(error.__traceback__)  # they refer to the mapped bytes
            self.close()
            if cache is not None:
                cache.discard()
            reason = _first_line(error)
            raise RunError(f"{where}: does not load: {reason}; copy the file again") from error
        self.signatures = Signatures(where, specs)
        if cache is not None:
            cache.commit()

    def create_buffer(self, spec: SignatureSpec, name: str) -> Any:
        """A TensorBuffer for that input, to be shared between signatures and models.

        It holds whatever its memory held.
        """
        return self._model.create_input_buffer_by_name(spec.name, name)

    def bind(self, spec: SignatureSpec, shared: Mapping[str, Any]) -> "BoundSignature":
        return BoundSignature(self._model, self.signatures.where, spec, shared)

    def release(self) -> None:
        """Give back the memory of what was read of the file, which may be read again."""
        self._bytes.release()

    def close(self) -> None:
        """Free the model. Signatures bound to it must have been let go of."""
        self._model = None
        self._bytes.close()

    def _read_signatures(self) -> Iterator[SignatureSpec]:
        stored = dict(read_tensors(self._bytes.data))
        for name, tensors in self._model.get_signature_list().items():
            for text in (name, *tensors["inputs"], *tensors["outputs"]):
                if not text.isprintable():
                    raise FlatbufferError(f"a tensor is named {text!r}")
            inputs, outputs = stored[name]
            yield SignatureSpec(
                name=name,
                index=self._model.get_signature_index(name),
                inputs={key: inputs[key] for key in tensors["inputs"]},
                outputs={key: outputs[key] for key in tensors["outputs"]},
            )


class BoundSignature:
    """A signature with all its buffers, ready to run again and again without allocating.

    Attributes:
        inputs: arrays to fill in place; run() hands them over. Shared buffers are not among them.
        outputs: arrays that run() fills in place.
    """

    def __init__(
        self, model: Any, where: str, spec: SignatureSpec, shared: Mapping[str, Any]
    ) -> None:
        from ai_edge_litert.tensor_buffer import TensorBuffer

        self._model = model
        self._what = f"{where}: {spec.name}"
        self._index = spec.index
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        self._writes: list[tuple[Any, Array]] = []
        self._input_buffers: list[Any] = []
        self._output_buffers: list[Any] = []
        for name, tensor in spec.inputs.items():
            buffer = shared.get(name)
            if buffer is None:
                # LiteRT takes lent memory only as one flat dimension, which no input but a
                # vector has: inputs are copied, 1 us and a memcpy each.
                buffer = model.create_input_buffer_by_name(spec.name, name)
                self.inputs[name] = zeros(tensor)
                self._writes.append((buffer, self.inputs[name]))
            self._input_buffers.append(buffer)
        for name, tensor in spec.outputs.items():
            buffer = shared.get(name)
            if buffer is None:
                flat = _aligned(tensor)
                buffer = TensorBuffer.create_from_host_memory(flat)
                self.outputs[name] = flat.reshape(tensor.shape)
            self._output_buffers.append(buffer)
        # At its first write LiteRT 2.3.0 makes an environment of its own and says so: it shall do
        # that while the bundle is loaded, where it is not heard.
        self._hand_over()

    def _hand_over(self) -> None:
        for buffer, array in self._writes:
            buffer.write(array)

    def run(self) -> None:
        self._hand_over()
        try:
            self._model.run_by_index(self._index, self._input_buffers, self._output_buffers)
        except RuntimeError as error:
            reason = _first_line(error)
            raise RunError(f"{self._what}: does not run: {reason}; copy the file again") from error


def zeros(tensor: TensorSpec) -> Array:
    return np.zeros(tensor.shape, _DTYPES[tensor.dtype])


def check_tflite(data: bytes) -> None:
    """Check what LiteRT does not: that the weights outside the flatbuffer lie in the section.

    LiteRT verifies the flatbuffer itself before it uses it.

    Raises:
        FlatbufferError: saying what is wrong.
    """
    if data[4:8] != _IDENTIFIER:
        raise FlatbufferError(f"found {data[4:8]!r} at byte 4, needed {_IDENTIFIER!r}")
    view = memoryview(data)
    unpack_at(view, "<I", 0)
    for index, buffer in enumerate(Table.root(view).tables(4)):
        offset, size_bytes = buffer.number(1, "<Q"), buffer.number(2, "<Q")
        if offset + size_bytes > len(data):
            raise FlatbufferError(
                f"weight {index} ends at byte {offset + size_bytes} of a section of {len(data)}"
            )


def read_tensors(
    data: bytes,
) -> Iterator[tuple[str, tuple[dict[str, TensorSpec], dict[str, TensorSpec]]]]:
    """Every signature's name with its inputs and its outputs, by their names.

    From the file, because LiteRT allocates all of a graph's tensors before it tells the shape of an
    output: 0.13 GB for E2B's prefill_1024, which most prompts never run.

    Raises:
        FlatbufferError: if the file leads out of itself.
    """
    model = Table.root(memoryview(data))
    graphs = [list(graph.tables(0)) for graph in model.tables(2)]
    for entry in model.tables(7):
        tensors = pick(graphs, entry.number(4, "<I"))
        named = (
            {
                item.string(0): _tensor_spec(pick(tensors, item.number(1, "<I")))
                for item in entry.tables(field)
            }
            for field in (0, 1)
        )
        inputs, outputs = named
        yield entry.string(2), (inputs, outputs)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _tensor_spec(tensor: Table) -> TensorSpec:
    number = tensor.number(1, "<b")
    return TensorSpec(_TYPES.get(number, f"type {number}"), tensor.numbers(0, "<i", _MAX_RANK))


def _aligned(tensor: TensorSpec) -> Array:
    """Zeroed flat array for an output, at an address LiteRT accepts and with room to spare."""
    size_bytes = int(np.prod(tensor.shape)) * np.dtype(_DTYPES[tensor.dtype]).itemsize
    raw = np.zeros(size_bytes + 2 * _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size_bytes].view(_DTYPES[tensor.dtype])


@contextlib.contextmanager
def native_messages_hidden() -> Iterator[None]:
    """Silence descriptor 2, unless debugging: LiteRT writes some twenty lines there per model.

    Nothing in 2.3.0 sets its log level from Python. Two lines at the exit of the process remain.
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
