"""What it is worth that one KV buffer is a graph's input and output."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options
from ai_edge_litert.interpreter import Interpreter

from runtime_py.backends.litert_model import native_messages_hidden
from tests.benchmarks.inputs import Graphs, Work, num_threads
from tests.benchmarks.record import Raw, Result, alternate, command, ratio

CACHE_LENGTHS = (512, 2048, 8192)
NUM_CALLS = 10  # per sample
SIGNATURE = "decode"
KV = "kv_cache_"
HIDDEN = -2.4e38

Inputs = Mapping[str, npt.NDArray[Any]]


class Decoder(Protocol):
    def step(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """One decode call, its KV rows kept; returns the logits."""
        ...


class Compiled:
    """CompiledModel with one set of KV buffers, or with two that take turns."""

    def __init__(self, path: Path, in_place: bool) -> None:
        options = Options(
            hardware_accelerators=HardwareAccelerator.CPU,
            cpu_options=CpuOptions(num_threads=num_threads()),
        )
        self._model = CompiledModel.from_file(str(path), options=options)
        self._index = self._model.get_signature_index(SIGNATURE)
        names = self._model.get_signature_list()[SIGNATURE]
        self._inputs = {
            name: self._model.create_input_buffer_by_name(SIGNATURE, name)
            for name in names["inputs"]
        }
        self._outputs = {
            name: self._model.create_output_buffer_by_name(SIGNATURE, name)
            for name in names["outputs"]
        }
        details = self._model.get_output_tensor_details(SIGNATURE)
        self._vocab_size = int(details["logits"]["shape"][-1])
        for name, shape in _kv_shapes(details).items():
            self._inputs[name].write(np.zeros(shape, np.float32))
        self._in_place = in_place

    def step(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        for name, array in inputs.items():
            self._inputs[name].write(array)
        outputs = self._outputs
        if self._in_place:
            outputs = {name: self._inputs.get(name, buffer) for name, buffer in outputs.items()}
        self._model.run_by_index(self._index, list(self._inputs.values()), list(outputs.values()))
        if not self._in_place:
            for name in filter(_is_kv, outputs):
                self._inputs[name], outputs[name] = outputs[name], self._inputs[name]
        logits: npt.NDArray[np.float32] = self._outputs["logits"].read(self._vocab_size, np.float32)
        return logits


class Classic:
    """The interpreter that most examples use: KV goes through NumPy arrays."""

    def __init__(self, path: Path) -> None:
        self._interpreter = Interpreter(model_path=str(path), num_threads=num_threads())
        self._run = self._interpreter.get_signature_runner(SIGNATURE)
        self._kv = {
            name: np.zeros(shape, np.float32)
            for name, shape in _kv_shapes(self._run.get_input_details()).items()
        }

    def step(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        outputs = self._run(**inputs, **self._kv)
        self._kv = {name: outputs[name] for name in self._kv}
        logits: npt.NDArray[np.float32] = outputs["logits"].reshape(-1)
        return logits


def measure(work: Work, num_repeats: int) -> Result:
    """Time decode with shared, swapped and copied KV buffers."""
    raw: Raw = {}
    ratios: dict[str, float] = {}
    errors: dict[str, float] = {}
    for length in CACHE_LENGTHS:
        graphs = Graphs(recipe="int8", prefill_lengths=(), verify_widths=(), cache_length=length)
        path = work.lowered(work.stack(num_layers=4), graphs) / "prefill_decode.tflite"
        with native_messages_hidden():
            decoders: dict[str, Decoder] = {
                "in place": Compiled(path, in_place=True),
                "two buffers": Compiled(path, in_place=False),
                "interpreter": Classic(path),
            }
        errors[f"largest logit difference, {length} rows"] = _difference(decoders, length)
        times = alternate(
            {
                f"{name}, {length} rows: decode ms": partial(_sample, decoder, length)
                for name, decoder in decoders.items()
            },
            num_repeats,
        )
        raw |= times
        in_place, *others = times
        ratios |= {f"{key} / in place": ratio(times, key, in_place) for key in others}
    settings = {
        "threads": num_threads(),
        "model": "int8, 4 layers of E2B's widths, 2 of them own KV: 3 KB a row and layer pair",
        "calls": NUM_CALLS,
    }
    return Result(settings=settings, raw=raw, ratios=ratios, found=errors)


def _difference(decoders: Mapping[str, Decoder], cache_length: int) -> float:
    """Between the decoders, over a few tokens that read what the ones before them wrote."""
    worst = 0.0
    for position in range(4):
        logits = [decoder.step(_inputs(position, cache_length)) for decoder in decoders.values()]
        worst = max(worst, *(float(np.abs(other - logits[0]).max()) for other in logits[1:]))
    return worst


def _sample(decoder: Decoder, cache_length: int) -> float:
    inputs = _inputs(4, cache_length)
    start = time.perf_counter()
    for _ in range(NUM_CALLS):
        decoder.step(inputs)
    return 1000 * (time.perf_counter() - start) / NUM_CALLS


def _inputs(position: int, cache_length: int) -> dict[str, npt.NDArray[Any]]:
    random = np.random.default_rng(position)
    mask = np.full((1, 1, 1, cache_length), HIDDEN, np.float32)
    mask[..., : position + 1] = 0.0
    return {
        "embeddings": random.standard_normal((1, 1, 1536), np.float32),
        "per_layer_embeddings": random.standard_normal((1, 1, 4, 256), np.float32),
        "input_pos": np.array([position], np.int32),
        "mask": mask,
    }


def _kv_shapes(details: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(int(size) for size in tensor["shape"])
        for name, tensor in details.items()
        if _is_kv(name)
    }


def _is_kv(name: str) -> bool:
    return name.startswith(KV)


main = command("kv_in_place", measure)

if __name__ == "__main__":
    main()
