"""Look into the .onnx files and the data file beside them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

NUMPY = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.UINT8: np.uint8,
}


@dataclass(frozen=True)
class Stored:
    """An initializer that lies in the data file."""

    name: str
    shape: tuple[int, ...]
    dtype: type
    location: str
    offset: int
    length: int

    def read(self, folder: Path) -> np.ndarray:
        data = (folder / self.location).read_bytes()[self.offset : self.offset + self.length]
        return np.frombuffer(data, self.dtype).reshape(self.shape)


def read_graphs(folder: Path) -> dict[str, onnx.ModelProto]:
    """fill, finish and draft; the weights stay where they are."""
    return {
        path.name.split(".")[1]: onnx.load(path, load_external_data=False)
        for path in folder.glob("model.*.onnx")
    }


def stored_tensors(model: onnx.ModelProto) -> dict[str, Stored]:
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            found[tensor.name] = Stored(
                tensor.name,
                tuple(tensor.dims),
                NUMPY.get(tensor.data_type, np.int32),
                where["location"],
                int(where["offset"]),
                int(where["length"]),
            )
    return found
