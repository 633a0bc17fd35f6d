"""What it is worth that one KV buffer is a graph's input and output."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options
from ai_edge_litert.interpreter import Interpreter

from runtime_py.backends.litert.model import native_messages_hidden
from tests.benchmarks import kv_onnx
from tests.benchmarks.inputs import Graphs, Work, num_threads
from tests.benchmarks.record import Raw, Result, alternate, command, ratio

CACHE_LENGTHS = (512, 2048, 8192)
NUM_CALLS = 10  # per sample
POSITION = 4  # of the calls that are timed
SIGNATURE = "decode"
KV = "kv_cache_"
HIDDEN = -2.4e38

Inputs = Mapping[str, npt.NDArray[Any]]


Decode = Callable[[int], npt.NDArray[np.float32]]  # position -> logits; its KV rows are kept


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
        self._cache_length = _cache_length(self._model.get_input_tensor_details(SIGNATURE))
        for name, shape in _kv_shapes(details).items():
            self._inputs[name].write(np.zeros(shape, np.float32))
        self._in_place = in_place

    def step(self, position: int) -> npt.NDArray[np.float32]:
        for name, array in _inputs(position, self._cache_length).items():
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
        self._cache_length = _cache_length(self._run.get_input_details())

    def step(self, position: int) -> npt.NDArray[np.float32]:
        outputs = self._run(**_inputs(position, self._cache_length), **self._kv)
        self._kv = {name: outputs[name] for name in self._kv}
        logits: npt.NDArray[np.float32] = outputs["logits"].reshape(-1)
        return logits


def measure(work: Work, num_repeats: int) -> Result:
    """Time decode with shared, swapped and copied KV buffers."""
    raw: Raw = {}
    ratios: dict[str, float] = {}
    errors: dict[str, float] = {}
    for runtime, decoders_of in {"LiteRT": _litert, "ONNX": _onnx}.items():
        for length in CACHE_LENGTHS:
            decoders = decoders_of(work, length)
            where = f"{runtime}, {length} rows"
            errors[f"{where}: largest logit difference"] = _difference(decoders)
            times = alternate(
                {
                    f"{where}, {name}: decode ms": partial(_sample, decode)
                    for name, decode in decoders.items()
                },
                num_repeats,
            )
            raw |= times
            in_place, *others = times
            ratios |= {f"{key} / in place": ratio(times, key, in_place) for key in others}
    settings = {
        "threads": num_threads(),
        "model": "int8, 4 layers of E2B's widths, 2 of them own KV: 3 KB a row and layer pair",
        "position": POSITION,
        "arrays": "LiteRT's Interpreter and onnxruntime's session.run, which copy the KV rows "
        "into and out of NumPy arrays",
        "calls": NUM_CALLS,
    }
    return Result(settings=settings, raw=raw, ratios=ratios, found=errors)


def _litert(work: Work, cache_length: int) -> dict[str, Decode]:
    graphs = Graphs(recipe="int8", prefill_lengths=(), verify_widths=(), cache_length=cache_length)
    path = work.lowered(work.stack(num_layers=4), graphs) / "prefill_decode.tflite"
    with native_messages_hidden():
        return {
            "in place": Compiled(path, in_place=True).step,
            "two buffers": Compiled(path, in_place=False).step,
            "arrays": Classic(path).step,
        }


def _onnx(work: Work, cache_length: int) -> dict[str, Decode]:
    """One file for every length: how many rows there are is the caller's choice."""
    path = work.model(work.stack(num_layers=4), Graphs(recipe="int8", route="onnx"))
    graphs = kv_onnx.Graphs(path, num_threads(), cache_length)
    return {
        "in place": kv_onnx.in_place(graphs),
        "two buffers": kv_onnx.two_buffers(graphs),
        "arrays": kv_onnx.arrays(graphs),
    }


def _difference(decoders: Mapping[str, Decode]) -> float:
    """Between the decoders, over a few tokens that read what the ones before them wrote."""
    worst = 0.0
    for position in range(POSITION):
        logits = [decode(position).copy() for decode in decoders.values()]
        worst = max(worst, *(float(np.abs(other - logits[0]).max()) for other in logits[1:]))
    return worst


def _sample(decode: Decode) -> float:
    start = time.perf_counter()
    for _ in range(NUM_CALLS):
        decode(POSITION)
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


def _cache_length(details: Mapping[str, Any]) -> int:
    return int(details["mask"]["shape"][-1])


def _is_kv(name: str) -> bool:
    return name.startswith(KV)


main = command("kv_in_place", measure)

if __name__ == "__main__":
    main()
