"""What a .tflite says, read back from its flatbuffer, and what it computes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

TYPE_NAMES = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
OPERATOR_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
READERS = ("FULLY_CONNECTED", "EMBEDDING_LOOKUP")


@dataclass(frozen=True)
class Stored:
    """A constant that a linear or a lookup reads."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int  # 0: inside the flatbuffer
    data: bytes
    scales: np.ndarray | None


@dataclass(frozen=True)
class File:
    path: Path
    raw: bytes
    model: schema.ModelT

    def signatures(self) -> dict[str, tuple[dict, dict]]:
        """Signature -> (inputs, outputs), name -> (shape, type name)."""
        found = {}
        for definition in self.model.signatureDefs:
            tensors = self.model.subgraphs[definition.subgraphIndex].tensors
            inputs, outputs = (
                {
                    entry.name.decode(): (
                        tuple(int(n) for n in tensors[entry.tensorIndex].shape),
                        TYPE_NAMES[tensors[entry.tensorIndex].type],
                    )
                    for entry in entries
                }
                for entries in (definition.inputs, definition.outputs)
            )
            found[definition.signatureKey.decode()] = (inputs, outputs)
        return found

    def operators(self) -> set[str]:
        return {OPERATOR_NAMES[code.builtinCode] for code in self.model.operatorCodes}

    def weights(self) -> list[list[Stored]]:
        """The constants read by linears and lookups, in order, one list per signature."""
        return [
            [
                stored
                for operator in subgraph.operators
                for stored in self._constant(subgraph, operator)
            ]
            for subgraph in self.model.subgraphs
        ]

    def _constant(self, subgraph, operator) -> list[Stored]:
        code = self.model.operatorCodes[operator.opcodeIndex].builtinCode
        if OPERATOR_NAMES[code] not in READERS:
            return []
        tensor = subgraph.tensors[operator.inputs[1]]
        buffer = self.model.buffers[tensor.buffer]
        if buffer.data is None and not buffer.offset:
            return []  # made at run time: keys and values
        inside = buffer.data is not None
        data = bytes(bytearray(buffer.data)) if inside else self._outside(buffer)
        scales = None if tensor.quantization is None else tensor.quantization.scale
        shape = tuple(int(n) for n in tensor.shape)
        name = tensor.name.decode()
        return [Stored(name, TYPE_NAMES[tensor.type], shape, buffer.offset, data, scales)]

    def _outside(self, buffer) -> bytes:
        return self.raw[buffer.offset : buffer.offset + buffer.size]


def read(path: Path) -> File:
    raw = path.read_bytes()
    return File(path, raw, schema.ModelT.InitFromPackedBuf(raw, 0))


def run(path: Path, signature: str, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """One call of a signature."""
    runner = Interpreter(model_path=str(path)).get_signature_runner(signature)
    outputs = runner(**{name: tensor.detach().numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(array) for name, array in outputs.items()}
